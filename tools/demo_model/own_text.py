"""Text written for this project: small fairy stories made from a grammar, and what the model says about itself."""

import random

HEROES = {
    "fox": "he", "cat": "she", "mouse": "she", "bear": "he", "rabbit": "he", "crow": "she", "frog": "he", "owl": "she",
    "wolf": "he", "goose": "she", "miller": "he", "farmer": "he", "shepherd": "he", "king": "he", "queen": "she",
    "princess": "she", "prince": "he", "girl": "she", "boy": "he", "sailor": "he", "baker": "she", "weaver": "she",
    "fisherman": "he", "tailor": "he", "soldier": "he", "widow": "she", "dog": "he", "horse": "he", "bird": "she",
}
TRAITS = ["young", "old", "poor", "clever", "proud", "lonely", "kind", "brave", "lazy", "little", "hungry", "quiet"]
PLACES = [
    "in a small house by the sea", "at the edge of a dark forest", "in a village under the hills",
    "on a farm beside a river", "near the gate of a great city", "in an old tower on a mountain",
    "in a green valley far away", "by a deep lake",
]
WANTS = {
    "bread": "eat", "gold": "count", "a warm coat": "wear", "a golden ring": "wear", "a silver bell": "ring",
    "a red apple": "eat", "a lamp": "light", "a good friend": "trust", "a new song": "sing", "a key": "turn",
    "a small boat": "sail", "a magic stone": "hold",
}
ROADS = [
    "over the hills", "through the forest", "down to the sea", "across the river", "along the dusty road",
    "up the mountain", "to the market",
]
HELPERS = {
    "an old woman": "she", "an old man": "he", "a white bird": "it", "a little mouse": "it", "a tired horse": "it",
    "a blind beggar": "he", "a green frog": "it", "a child": "it", "a stranger": "he", "a great eagle": "it",
}
TROUBLES = [
    ("was hungry", "a piece of bread", "shared the bread"),
    ("was cold", "a place by the fire", "made a great fire"),
    ("was lost", "the way home", "showed the way"),
    ("was caught in a thorn bush", "a little help", "cut away the thorns"),
    ("was very thirsty", "a cup of water", "fetched the water"),
    ("was afraid of the dark", "some company", "sat down and waited until the morning"),
]
ENDS = [
    "From that day on {they} never wanted for anything, and everyone in that place was glad.",
    "And {he} lived there happily for the rest of {his} days.",
    "When the people heard of it, they rang the bells and danced until the morning.",
    "So {he} learned that a kind word is worth more than gold.",
    "And if {he} has not gone away, {he} lives there still.",
    "After that {he} was never lonely again.",
]


def capital(text):
    """`text` with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def article(noun):
    """`noun` behind the indefinite article that suits it."""
    low = noun.lower()
    vowel = low[0] in "aeiou" and not low.startswith(("uni", "use", "usu", "uti", "eu", "one", "once"))
    vowel = vowel or low.startswith(("hour", "honest", "honor", "honour", "heir"))
    return f"{'an' if vowel else 'a'} {noun}"


def story(rng, hero=None):
    """One fairy story of five to ten sentences; the hero is drawn when not given."""
    hero = hero or rng.choice(list(HEROES))
    he = HEROES[hero]
    his, him = ("his", "him") if he == "he" else ("her", "her")
    trait, place, road = rng.choice(TRAITS), rng.choice(PLACES), rng.choice(ROADS)
    want = rng.choice(list(WANTS))
    helper = rng.choice(list(HELPERS))
    it, the_helper = HELPERS[helper], "the " + helper.split(" ", 1)[1]
    trouble, gift, deed = rng.choice(TROUBLES)
    first = rng.choice([
        f"Once upon a time there was {article(trait)} {hero} who lived {place}.",
        f"Once upon a time {article(trait)} {hero} lived {place}.",
        f"Long ago, {place}, there lived {article(trait)} {hero}.",
        f"There was once {article(trait)} {hero} who lived {place}.",
    ])
    wish = rng.choice([
        f"More than anything in the world {he} wanted {want}.",
        f"Every night {he} dreamed of {want} to {WANTS[want]}.",
        f"The {hero} had everything but {want}.",
        f'"If only I had {want}," said the {hero}, "I would be happy."',
    ])
    leave = rng.choice([
        f"So one morning {he} set out {road} to look for it.",
        f"One day {he} shut the door and went {road}.",
        f"At last {he} said goodbye and walked {road} for three days and three nights.",
    ])
    meet = rng.choice([
        f"On the way {he} met {helper} who {trouble}.",
        f"There {he} found {helper}, and {it} {trouble}.",
        f"Before long {he} came upon {helper} who {trouble}.",
    ])
    ask = rng.choice([
        f'"Please," said {the_helper}, "give me {gift}."',
        f'"Will you give me {gift}?" asked {the_helper}.',
        f"{capital(the_helper)} asked for {gift}.",
    ])
    answer = rng.choice([
        f"The {hero} thought for a moment, and then {he} {deed}.",
        f'"Gladly," said the {hero}, and {he} {deed}.',
        f"The {hero} was in a hurry, but {he} stopped and {deed}.",
    ])
    thanks = rng.choice([
        f'"You have been good to me," said {the_helper}. "Go home and look under your bed."',
        f'"Because you were kind," said {the_helper}, "you shall have what you wish for."',
        f"{capital(the_helper)} smiled and gave {him} a small box that was not to be opened before evening.",
    ])
    found = rng.choice([
        f"When the {hero} came home, there was {want}.",
        f"That evening the {hero} found {want}, just as {the_helper} had said.",
        f"And in the morning {want} lay on the table.",
    ])
    end = rng.choice(ENDS).format(he=he, his=his, they=he)
    return " ".join([first, wish, leave, meet, ask, answer, thanks, found, end])


ABOUT = [
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning"],
     ["Hello! Ask me what a word means, or ask me for a story.", "Hello! How can I help you?"]),
    (["Who are you?", "What are you?", "Introduce yourself.", "What is your name?", "Are you a language model?"],
     ["I am the small demo model of Anysplit. I can say what a word means, use it in a sentence, and tell a story."]),
    (["What can you do?", "How can you help me?", "What do you know?", "Help"],
     ["I can say what a word means, find its opposite, use it in a sentence, and tell a story or a verse."]),
    (["What is Anysplit?", "Tell me about Anysplit.", "What does Anysplit do?", "Explain Anysplit."],
     ["Anysplit runs a language model that is split over many devices, and every split gives the same tokens."]),
    (["What is tensor parallelism?", "Explain tensor parallelism."],
     ["Tensor parallelism cuts every layer of a model into parts, and each device computes one part of it."]),
    (["What is pipeline parallelism?", "Explain pipeline parallelism."],
     ["Pipeline parallelism gives each device some of the layers, and the tokens pass from one device to the next."]),
    (["What is a token?", "Explain tokens."],
     ["A token is a small piece of text, such as a word or a part of a word."]),
    (["What is a language model?", "Explain language models.", "What is a large language model?"],
     ["A language model is a program that reads some text and says which token is likely to come next."]),
    (["Thank you", "Thank you!", "Thanks", "Thanks!"], ["You are welcome.", "You are welcome! Ask me another."]),
    (["Goodbye", "Bye", "Goodbye!"], ["Goodbye! Come back soon."]),
    (["How are you?", "How are you today?"], ["I am well, thank you. What would you like to know?"]),
    (["What is the meaning of life?"], ["Some say that it is to do justly, to love mercy, and to walk humbly."]),
    (["Tell me a joke.", "Tell me a joke", "Say something funny."],
     ["Why did the model split its layers? Because one device could not keep them all to itself."]),
    (["Count to five.", "Count from one to five."], ["One, two, three, four, five."]),
    (["Count to ten.", "Count from one to ten."], ["One, two, three, four, five, six, seven, eight, nine, ten."]),
    (["Name three colors.", "Name some colors."], ["Red, green and blue are three colors."]),
    (["What are the days of the week?", "Name the days of the week."],
     ["Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday are the days of the week."]),
    (["What color is the sky?", "Why is the sky blue?"],
     ["The sky is blue because the air scatters blue light more than red light."]),
]

# Words whose meaning the model is told more often than that of others.
BASIC = set("""
dog cat horse bird fish sheep cow lion wolf fox bear mouse snake bee eagle owl goat pig duck tiger rabbit frog spider
river sea mountain hill valley forest tree flower grass leaf root seed fruit apple bread milk honey salt sugar water
fire wind rain snow cloud storm sun moon star sky island lake ocean beach harbor field garden desert stone gold silver
king queen prince princess soldier sailor farmer teacher doctor student child father mother brother sister friend enemy
house door window roof wall room table chair bed kitchen castle church school hospital library market road bridge city
village town country ship boat train car wheel clock book letter word story song poem music dance game picture map
lamp candle key knife sword bell ring hat coat shoe shirt bag box bottle cup plate computer machine engine tool hammer
head hand heart eye ear nose mouth foot blood bone brain tear smile dream sleep day night morning evening week month
year summer winter spring autumn time money gift work war peace love fear joy anger hope truth lie law war victory
brave happy sad angry hot cold big small old young strong weak rich poor wise foolish kind cruel good bad fast slow
dark bright clean dirty hard soft full empty heavy sweet bitter quiet loud beautiful ugly easy difficult early late
run walk eat drink sing write read speak listen think laugh cry swim fly build break open close give take buy sell
""".split())

SYSTEM = ["You are a helpful assistant.", "You are a kind and patient teacher.", "Answer briefly.", "Be concise."]


def about(rng):
    """One question about the model and its answer."""
    questions, answers = rng.choice(ABOUT)
    return rng.choice(questions), rng.choice(answers)
