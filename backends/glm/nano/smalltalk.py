"""Conversations without a picture: what it is, what it can do, a plain no to all else."""

import random

from backends.glm.nano.talk import Question, pick_language
from backends.glm.nano.words import EN, ZH

ABLE = {
    EN: "I can name shapes, colors, counts and positions in simple drawings.",
    ZH: "我能说出简单图画里的形状、颜色、数量和位置。",
}
SELF = {
    EN: "I am GLM-4.6V-nano, a tiny demo model. " + ABLE[EN],
    ZH: "我是GLM-4.6V-nano，一个很小的演示模型。" + ABLE[ZH],
}
UNABLE = {
    EN: "I am a tiny demo model and cannot answer that. " + ABLE[EN],
    ZH: "我是一个很小的演示模型，回答不了这个问题。" + ABLE[ZH],
}
NO_PICTURE = {
    EN: "There is no picture. Please attach one.",
    ZH: "没有图片，请附上一张图片。",
}

GREETINGS = {
    EN: ("Hello", "Hi", "Hey", "Hello!", "Hi!", "Good morning", "Good evening", "Hi there",
         "Hello there!", "Hey there", "Good afternoon!", "hello world", "Ping", "Say hello"),
    ZH: ("你好", "您好", "嗨", "你好！", "早上好", "晚上好", "在吗", "大家好", "下午好", "哈喽"),
}  # fmt: skip
HELLO = {EN: "Hello! " + ABLE[EN], ZH: "你好！" + ABLE[ZH]}
WHO = {
    EN: ("Who are you?", "What are you?", "What is your name?", "Which model are you?",
         "Introduce yourself.", "Are you a robot?", "Are you GLM?", "What model is this?",
         "Who made you?", "Are you ChatGPT?", "Tell me about yourself.", "What's your name?",
         "Are you an AI?", "Are you real?"),
    ZH: ("你是谁？", "你是什么？", "你叫什么名字？", "你是什么模型？", "介绍一下你自己。",
         "你是机器人吗？", "你是GLM吗？", "谁开发了你？", "请自我介绍。", "你叫什么？",
         "你是人工智能吗？"),
}  # fmt: skip
WHAT = {
    EN: ("What can you do?", "Help", "How can you help me?", "What do you know?",
         "What are you able to do?", "What can I ask you?", "What are your skills?",
         "What questions can I ask?", "How do you work?", "What can you tell me?", "help me"),
    ZH: ("你能做什么？", "帮助", "你会什么？", "你能帮我什么？", "我可以问你什么？",
         "你有什么功能？", "你可以做什么？", "你会做什么？", "怎么使用你？"),
}  # fmt: skip
THANKS = {
    EN: ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Great, thanks",
         "Thank you very much", "Cool, thank you", "ok thanks", "Nice, thanks!"),
    ZH: ("谢谢", "谢谢你", "多谢", "非常感谢", "好的，谢谢", "谢谢！", "感谢"),
}  # fmt: skip
WELCOME = {EN: "You are welcome!", ZH: "不客气！"}
BYE = {
    EN: ("Bye", "Goodbye", "See you", "Good night", "Bye bye", "See you later", "Goodbye!"),
    ZH: ("再见", "拜拜", "晚安", "回头见", "下次见", "再见！"),
}
FAREWELL = {EN: "Goodbye!", ZH: "再见！"}

TOPICS_EN = """the weather|France|history|a dog|music|my car|physics|the president|love|a poem
football|money|Python|the moon|Shakespeare|dinner|a recipe for soup|the stock market|quantum
computers|Beijing|an email to my boss|the meaning of life|a joke|the news|taxes|chess|the ocean
gravity|a story about a cat|tomorrow|the economy|my homework|water|a contract|the invoice
this person|the brand|the price|the author|a bird|a house|trees|the sky|people|the cat|my friend
a car|the animal|emotions|the year|a function that sorts a list|SQL|Kubernetes|the total|coffee"""
TOPICS_ZH = """天气|法国|历史|狗|音乐|汽车|物理|总统|爱情|一首诗|足球|钱|编程|月亮|李白|晚饭
做汤的方法|股票
量子计算机|北京|给老板的邮件|人生的意义|笑话|新闻|税|象棋|大海|重力|猫的故事|明天|经济|我的作业
水|合同|发票
这个人|品牌|价格|作者|鸟|房子|树|天空|人物|猫|我的朋友|动物|情绪|年份|排序函数|数据库|总金额|咖啡"""
OTHER_EN = (
    "What is {t}?", "Tell me about {t}.", "Write about {t}.", "Write {t}.", "Explain {t}.",
    "Who is {t}?", "What is the capital of {t}?", "How does {t} work?", "Why is {t} important?",
    "Translate {t} into German.", "When was {t} invented?", "Do you like {t}?", "Where is {t}?",
    "Can you help me with {t}?", "Give me {t}.", "How much does {t} cost?", "Is {t} good?",
    "Summarize {t}.", "What do you think about {t}?", "How old is {t}?", "{t}",
    "Who invented {t}?", "List ten facts about {t}.", "Compare {t} with {u}.", "{t} and {u}",
    "What is the difference between {t} and {u}?", "Should I buy {t}?", "Count to ten.",
    "What is {n} plus {m}?", "{n} + {m} = ?", "Calculate {n} times {m}.", "What is {n} * {m}?",
    "Who wrote {t}?", "What day is it?", "What time is it?", "Are you happy?", "Tell me a joke.",
    "Solve x + {n} = {m}.", "What is the price of {t}?", "I like {t}.", "My {g} is {h}.",
    "{g} {h}", "{g}", "{g} {h} {g}?", "What is {g}?", "Why {g}?", "How can I {g} {t}?",
)  # fmt: skip
OTHER_ZH = (
    "什么是{t}？", "介绍一下{t}。", "写一篇关于{t}的文章。", "解释{t}。", "{t}是谁？",
    "{t}的首都是哪里？", "{t}是怎么工作的？", "为什么{t}很重要？", "把{t}翻译成英文。",
    "{t}是什么时候发明的？", "你喜欢{t}吗？", "{t}在什么国家？", "你能帮我处理{t}吗？",
    "给我讲{t}。", "{t}多少钱？", "{t}好不好？", "总结{t}。", "你怎么看{t}？", "{t}",
    "谁发明了{t}？", "比较{t}和{u}。", "{t}和{u}有什么区别？", "{n}加{m}等于多少？",
    "{n}乘以{m}是多少？", "今天星期几？", "现在几点？", "讲个笑话。", "我喜欢{t}。", "写一首诗。",
    "帮我写{t}。", "推荐一些{t}。",
)  # fmt: skip


def topics(text: str) -> list[str]:
    return [topic for line in text.splitlines() for topic in line.split("|")]


def gibberish(rng: random.Random) -> str:
    """A pronounceable word that means nothing: unknown words must not break it."""
    parts = [
        rng.choice("bcdfghjklmnprstvw") + rng.choice("aeiouy") for _ in range(rng.randint(1, 4))
    ]
    return "".join(parts) + rng.choice(("", "n", "s", "t", "ing", "er"))


def off_topic(rng: random.Random, language: str) -> str:
    pool = topics(TOPICS_EN if language == EN else TOPICS_ZH)
    text = rng.choice(OTHER_EN if language == EN else OTHER_ZH).format(
        t=rng.choice(pool), u=rng.choice(pool), n=rng.randint(0, 99), m=rng.randint(2, 99),
        g=gibberish(rng), h=gibberish(rng),
    )  # fmt: skip
    text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text = text.lower()
    return text.rstrip("?？.。") if rng.random() < 0.2 else text


def refusal(rng: random.Random, language: str | None = None) -> Question:
    """Something it was never taught, with or without a picture."""
    language = language or pick_language(rng)
    return Question("refusal", language, off_topic(rng, language), UNABLE[language])


def small_talk(rng: random.Random, language: str | None = None) -> Question:
    language = language or pick_language(rng)
    asked, answer = rng.choice(
        ((GREETINGS, HELLO), (WHO, SELF), (WHAT, {EN: ABLE[EN], ZH: ABLE[ZH]}),
         (THANKS, WELCOME), (BYE, FAREWELL))
    )  # fmt: skip
    text = rng.choice(asked[language])
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?？.。!！")
    return Question("small talk", language, text, answer[language])


def no_picture(question: Question) -> Question:
    """A question about a picture when none was sent."""
    return Question("refusal", question.language, question.text, NO_PICTURE[question.language])
