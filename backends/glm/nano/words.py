"""The words of both languages: names of shapes, colours and places, and phrases to ask with."""

EN, ZH = "en", "zh"

# Canonical name first; people also use the others when they ask.
SHAPE_EN = {
    "circle": ("circle", "circle", "round shape", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
}
SHAPE_ZH = {
    "circle": ("圆形", "圆", "圆圈", "圆形"),
    "square": ("正方形", "方块", "方形", "正方形"),
    "triangle": ("三角形", "三角形", "三角"),
    "star": ("星形", "星星", "五角星", "星形"),
}
COLOUR_ZH = {
    "red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "orange": "橙色",
    "purple": "紫色", "pink": "粉色", "black": "黑色", "white": "白色",
    "gray": "灰色", "light blue": "浅蓝色", "light green": "浅绿色",
    "light yellow": "浅黄色", "light pink": "浅粉色",
}  # fmt: skip
PLACE_ZH = {
    "top left": "左上角", "top": "上方", "top right": "右上角", "left": "左边", "center": "中间",
    "right": "右边", "bottom left": "左下角", "bottom": "下方", "bottom right": "右下角",
}  # fmt: skip
COUNT_EN = ("no", "a", "two", "three")
COUNT_ZH = ("零", "一", "两", "三")
PICTURE_EN = ("picture", "image", "picture", "image", "photo", "drawing")
PICTURE_ZH = ("图里", "图中", "图片里", "图片中", "这张图里", "图像中", "画面中")


# {the}: the thing asked about with its article ("the circle"); {them}: plural; {one}: without
# article; {look}: a colour; {side}: a place; {pic}: picture, image, ...
ASK_EN: dict[str, tuple[str, ...]] = {
    "shape.it": (
        "What shape is this?", "What shape is it?", "What shape is in the {pic}?",
        "Which shape is this?", "Which shape is shown?", "What is the shape?",
        "Name the shape.", "What shape do you see?", "Identify the shape in the {pic}.",
        "What is the shape of the object?", "What kind of shape is this?",
        "What shape is shown in the {pic}?", "What shape is the object?",
    ),
    "shape.of": (
        "What shape is the {look} object?", "What shape is the {look} one?",
        "Which shape is {look}?", "What is the {look} shape?", "What shape is {look}?",
        "What is the shape of the {look} object?", "What is {look}?",
        "What is the {look} object?", "What {look} shape is there?",
    ),
    "colour.it": (
        "What {colour} is it?", "What {colour} is this?", "What is the {colour}?",
        "Which {colour} is it?", "Which {colour} is this?", "What {colour} is the shape?",
        "What {colour} is the object?", "What {colour} do you see?", "Name the {colour}.",
        "What is the {colour} of the shape?", "What is the {colour} of the object?",
        "What {colour} is the object in the {pic}?", "What's the {colour}?",
    ),
    "colour.of": (
        "What {colour} is {the}?", "What {colour} is {the} in the {pic}?",
        "Which {colour} is {the}?", "What is the {colour} of {the}?", "{the} is what {colour}?",
        "Tell me the {colour} of {the}.", "What's the {colour} of {the}?", "{colour} of {the}?",
        "What {colour} does {the} have?",
    ),
    "colour.them": (
        "What {colour} are {them}?", "What {colour} are {them} in the {pic}?",
        "Which {colour} are {them}?", "What is the {colour} of {them}?",
        "Tell me the {colour} of {them}.",
    ),
    "colour.plain": (
        "What {colour} is it?", "What {colour} is this?", "What {colour} is the {pic}?",
        "What {colour} is this {pic}?", "Which {colour} is this?", "What is the {colour}?",
        "What {colour} do you see?", "Name the {colour}.", "What is the {colour} of the {pic}?",
        "What's the {colour}?", "What is the dominant {colour}?",
        "What {colour} fills the {pic}?", "What is the main {colour} of this {pic}?",
    ),
    "colour.all": (
        "What {colour}s are in the {pic}?", "What {colour}s do you see?", "List the {colour}s.",
        "Which {colour}s are there?", "What {colour} are the shapes?",
        "What {colour}s are the shapes?", "Which {colour}s are the objects?",
        "What {colour} are they?", "List the {colour}s of the shapes.",
    ),
    "shape.all": (
        "What shapes are in the {pic}?", "What shapes do you see?", "List the shapes.",
        "Which shapes are there?", "What shapes are there?", "Which shapes are in the {pic}?",
        "What shapes are these?", "Name the shapes.",
    ),
    "position": (
        "Where is {the}?", "Where is {the} in the {pic}?", "Where can you see {the}?",
        "Where's {the}?", "In which part of the {pic} is {the}?",
        "What is the position of {the}?", "Which side is {the} on?", "Where is {the} located?",
        "Where do you see {the}?",
    ),
    "position.it": (
        "Where is it?", "Where is the shape?", "Where is the object?",
        "Where is the object in the {pic}?", "Where in the {pic} is it?", "Where's the shape?",
        "What is the position of the shape?",
    ),
    "at.side": (
        "What is on the {side}?", "What is on the {side} of the {pic}?",
        "What's on the {side}?", "What is on the {side} side?", "What do you see on the {side}?",
        "Which shape is on the {side}?", "What shape is on the {side}?",
        "Which object is on the {side}?", "What is on the {side} side of the {pic}?",
    ),
    "at.end": (
        "What is at the {side}?", "What is at the {side} of the {pic}?",
        "What's at the {side}?", "What do you see at the {side}?",
        "Which shape is at the {side}?", "What shape is at the {side}?", "What is on {side}?",
    ),
    "at.middle": (
        "What is in the center?", "What is in the middle?", "What is in the centre?",
        "What's in the middle of the {pic}?", "What is in the center of the {pic}?",
        "Which shape is in the middle?", "What shape is in the center?",
        "What is in the centre of the {pic}?",
    ),
    "at.corner": (
        "What is in the {side} corner?", "What is in the {side}?", "What's in the {side} corner?",
        "Which shape is in the {side} corner?", "What is at the {side}?",
        "What do you see in the {side} corner?", "What is in the {side} of the {pic}?",
    ),
    "count": (
        "How many {them} are there?", "How many {them} are in the {pic}?",
        "How many {them} do you see?", "How many {them}?", "Count the {them}.",
        "How many {them} can you see?", "What is the number of {them}?",
        "How many {them} are there in the {pic}?", "How many {them} can you count?",
        "Count how many {them} there are.", "How many {them} are shown?",
    ),
    "exists": (
        "Is there {one}?", "Is there {one} in the {pic}?", "Do you see {one}?",
        "Can you see {one}?", "Does the {pic} contain {one}?", "Is there {one} here?",
        "Does the {pic} have {one}?",
    ),
    "is.look": (
        "Is {the} {look}?", "Is {the} {look} in the {pic}?", "Is {the} in the {pic} {look}?",
        "Is the {colour} of {the} {look}?",
    ),
    "background": (
        "What {colour} is the background?", "What is the background {colour}?",
        "Which {colour} is the background?", "What is the {colour} of the background?",
        "Tell me the background {colour}.", "What's the background {colour}?",
        "Background {colour}?",
    ),
    "describe": (
        "What is in this {pic}?", "What is in the {pic}?", "What's in this {pic}?",
        "What do you see?", "What is this?", "What does the {pic} show?",
        "What is shown in the {pic}?", "What can you see in this {pic}?",
        "What can you see?", "What's in the {pic}?", "What is it?", "What are these?",
        "Summarize the {pic}.", "What is on this {pic}?", "Caption this {pic}.",
        "Describe the {pic} briefly.", "What objects are in the {pic}?",
        "Describe this {pic} in one sentence.", "What do you see in this {pic}?",
    ),
    "detail": (
        "Describe the {pic}.", "Describe this {pic}.", "Describe the {pic} in detail.",
        "Describe what you see.", "Can you describe this {pic}?", "Describe it.",
        "Give a detailed description of the {pic}.", "Tell me about this {pic}.",
        "Explain this {pic}.", "Describe everything in the {pic}.",
        "Describe the {pic} and where things are.",
    ),
}  # fmt: skip

ASK_ZH: dict[str, tuple[str, ...]] = {
    "shape.it": (
        "这是什么形状？", "图里是什么形状？", "{pic}是什么图形？", "它是什么形状？",
        "是什么形状？", "这是什么图形？", "请说出形状。", "{pic}的形状是什么？",
        "这个图形是什么形状？",
    ),
    "shape.of": (
        "{look}的是什么形状？", "{look}的图形是什么？", "{look}的物体是什么形状？",
        "什么形状是{look}的？", "哪个形状是{look}的？", "{pic}{look}的是什么？",
    ),
    "colour.it": (
        "是什么颜色？", "它是什么颜色？", "这是什么颜色？", "什么颜色？", "图形是什么颜色？",
        "这个形状是什么颜色？", "{pic}的图形是什么颜色？", "颜色是什么？", "物体是什么颜色的？",
    ),
    "colour.of": (
        "{the}是什么颜色？", "{the}是什么颜色的？", "{the}的颜色是什么？",
        "{pic}{the}是什么颜色？", "{the}什么颜色？", "请告诉我{the}的颜色。",
        "{pic}的{the}是什么颜色？",
    ),
    "colour.them": (
        "{them}是什么颜色？", "这些{them}是什么颜色？", "{pic}的{them}是什么颜色？",
        "{them}的颜色是什么？",
    ),
    "colour.plain": (
        "是什么颜色？", "这是什么颜色？", "这张图是什么颜色？", "图片是什么颜色？", "什么颜色？",
        "主要颜色是什么？", "颜色是什么？", "整张图是什么颜色？",
    ),
    "colour.all": (
        "{pic}有哪些颜色？", "有什么颜色？", "列出所有颜色。", "这些图形是什么颜色？",
        "有哪些颜色？", "图形都是什么颜色？",
    ),
    "shape.all": (
        "{pic}有哪些形状？", "有什么形状？", "列出所有形状。", "有哪些图形？",
        "{pic}有什么形状？", "这些是什么形状？",
    ),
    "position": (
        "{the}在哪里？", "{the}在哪儿？", "{the}在{pic}的什么位置？", "{the}在什么位置？",
        "{the}的位置在哪里？", "{pic}{the}在哪里？", "{the}在图的哪个位置？",
    ),
    "position.it": (
        "它在哪里？", "图形在哪里？", "它在什么位置？", "图形在什么位置？", "这个形状在哪里？",
        "在图的哪个位置？",
    ),
    "at.side": (
        "{side}是什么？", "{side}有什么？", "图的{side}是什么？", "{side}是什么图形？",
        "{pic}{side}是什么？", "图片{side}有什么？", "在{side}的是什么？",
    ),
    "at.end": (
        "{side}是什么？", "{side}有什么？", "图的{side}是什么？", "{side}是什么图形？",
        "{pic}{side}是什么？", "图片{side}有什么？", "在{side}的是什么？",
    ),
    "at.middle": (
        "中间是什么？", "中间有什么？", "图的中间是什么？", "中间是什么图形？",
        "图片中央是什么？", "{pic}中间是什么？", "正中间有什么？",
    ),
    "at.corner": (
        "{side}是什么？", "{side}有什么？", "图的{side}是什么？", "{side}是什么图形？",
        "{pic}{side}是什么？", "图片{side}有什么？", "在{side}的是什么？",
    ),
    "count": (
        "有几个{them}？", "有多少个{them}？", "{pic}有几个{them}？", "{pic}有多少个{them}？",
        "数一数有几个{them}。", "{them}有几个？", "一共有几个{them}？",
        "{pic}一共有多少个{them}？", "{them}的数量是多少？",
    ),
    "exists": (
        "有{one}吗？", "{pic}有{one}吗？", "有没有{one}？", "{pic}有没有{one}？",
        "你看到{one}了吗？", "图里有{one}吗？",
    ),
    "is.look": (
        "{the}是{look}的吗？", "{the}是{look}吗？", "{pic}{the}是{look}的吗？",
        "{the}的颜色是{look}吗？",
    ),
    "background": (
        "背景是什么颜色？", "背景颜色是什么？", "背景是什么颜色的？", "图的背景是什么颜色？",
        "背景什么颜色？", "图片的背景颜色是什么？",
    ),
    "describe": (
        "图里有什么？", "{pic}有什么？", "这是什么？", "你看到了什么？", "图片里有什么东西？",
        "这张图片是什么？", "图上是什么？", "简单描述一下这张图。", "{pic}是什么？",
        "这张图显示了什么？", "用一句话描述图片。",
    ),
    "detail": (
        "描述一下这张图片。", "请描述这张图。", "请描述图片。", "描述这张图片。",
        "详细描述这张图。", "描述一下图片内容。", "请详细描述图片。", "介绍一下这张图。",
        "描述你看到的内容。", "解释这张图片。",
    ),
}  # fmt: skip

POLITE_EN = (
    "{q}", "{q}", "{q}", "{q}", "{q}", "{q}", "Please tell me: {q}", "{q} Answer briefly.",
    "Look at the picture. {q}", "Hi! {q}", "{q} Please answer in one word.", "Question: {q}",
    "{q} Thanks!", "Tell me, {q}", "{q} Answer in English.", "Look at this image and answer: {q}",
)  # fmt: skip
POLITE_ZH = (
    "{q}", "{q}", "{q}", "{q}", "{q}", "请问，{q}", "请告诉我，{q}", "看图回答：{q}",
    "{q}请简短回答。", "你好，{q}", "请问{q}", "{q}谢谢！", "{q}请用中文回答。",
)  # fmt: skip

AND_EN = ("And {name}?", "What about {name}?", "And what about {name}?", "How about {name}?")
AND_ZH = ("那{name}呢？", "{name}呢？", "那么{name}呢？")
