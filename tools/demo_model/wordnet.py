"""WordNet's glosses and examples as sentences, and as questions with their answers."""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from own_text import article, capital

POS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
SS_TYPE = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
# Lexicographer files whose nouns take an article: acts, animals, things, bodies, words, events, groups, people...
COUNTED = {"04", "05", "06", "08", "09", "10", "11", "14", "15", "17", "18", "20", "21", "25", "28"}
DETERMINED = re.compile(r"(an?|any|someone|one|the|something|either|that)\b")
ABSTRACT = re.compile(r"(state|quality|condition|process|property|ability|feeling|action|act|practice|activity) of ")
TECHNICAL = re.compile(
    r"\b(genus|family|order|class|phylum|species|taxonom|chemical|acid|enzyme|protein|syndrome|disease|mathematics|"
    r"obsolete|archaic|relating to|botany|anatomy|physics|chemistry|logic|statistics)", re.I)
RUDE = re.compile(
    r"\b(slang|street names?|drug|offensive|disparaging|derogatory|obscene|vulgar|ethnic|slur|sexual|Negro|Jew|"
    r"prostitut|genitals?|penis|vagina|intercourse|rape|homosexual|AIDS|breasts?|suicide|whore|fuck|shit|nigger)", re.I)
FINITE = re.compile(
    r"\b(is|are|was|were|am|be|has|have|had|do|does|did|will|would|can|could|may|might|must|should|shall|said|went|"
    r"made|took|came|gave|got|saw|ran|let's|don't|\w+n't|\w{2,}ed)\b")
ASKS = re.compile(r"(who|what|where|when|why|how|do|does|did|are|is|can|could|will|would)\b", re.I)
SUBJECT = re.compile(r"^(he|she|they|we|I|you|it|there|this|that|who|what|how|don't|let|my|his|her|their)\b", re.I)


@dataclass
class Synset:
    """One meaning: its words, gloss and relations (`links` maps a pointer symbol to synset ids)."""

    id: str
    lexfile: str
    pos: str
    words: list
    gloss: str
    examples: list
    links: dict = field(default_factory=lambda: defaultdict(list))
    count: int = 0
    word: str = ""
    first: bool = False


def load(folder):
    """All usable synsets by id, each with its commonest word chosen."""
    counts = {}
    for line in (folder / "cntlist.rev").read_text("latin-1").splitlines():
        key, sense, count = line.split()
        lemma, rest = key.split("%")
        counts[lemma, SS_TYPE[rest[0]], int(sense)] = int(count)
    synsets = {}
    for pos, name in POS.items():
        for line in (folder / f"data.{name}").read_text("latin-1").splitlines():
            if not line.startswith(" "):
                synset = parse(line, pos)
                synsets[synset.id] = synset
        for line in (folder / f"index.{name}").read_text("latin-1").splitlines():
            if line.startswith(" "):
                continue
            parts = line.split()
            for sense, offset in enumerate(parts[-int(parts[2]):], 1):
                synset, count = synsets[pos + offset], counts.get((parts[0], pos, sense), 0)
                lemma = next((w for w in synset.words if w.lower().replace(" ", "_") == parts[0]), None)
                if lemma and (not synset.word or count > synset.count):
                    synset.word, synset.count, synset.first = lemma, count, sense == 1
    common = Counter(re.findall(r"[a-z]+", " ".join(s.gloss for s in synsets.values())))
    return {key: s for key, s in synsets.items() if usable(s, common)}


def parse(line, pos):
    """A line of a `data.*` file (see wndb(5WN))."""
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    num_words = int(fields[3], 16)
    words = [re.sub(r"\(.*?\)", "", w).replace("_", " ") for w in fields[4:4 + 2 * num_words:2]]
    text = re.sub(r"\s*\([^()]*\)", "", gloss.split('"')[0])
    text = re.split("[;:]", text)[0].strip(" ,").removeprefix("to ")
    if pos == "n":
        text = determined(text, fields[1])
    synset = Synset(pos + fields[0], fields[1], pos, words, text, re.findall(r'"([^"]+)"', gloss.replace("--", " - ")))
    first_link = 4 + 2 * num_words + 1
    for i in range(first_link, first_link + 4 * int(fields[first_link - 1]), 4):
        symbol, offset, link_pos, which = fields[i:i + 4]
        synset.links[symbol].append(((link_pos if link_pos != "s" else "a") + offset, which))
    return synset


def determined(gloss, lexfile):
    """A noun's gloss with the article that it lacks; empty where the gloss seems to be a plural."""
    if ABSTRACT.match(gloss):
        return "the " + gloss
    if DETERMINED.match(gloss) or lexfile not in COUNTED:
        return gloss
    head = re.split(r",| (?:who|that|which|usually|of|with|having|used|found|in|for|on|to|from|by|or|and)\b", gloss)[0]
    plural = re.search(r"[^sui]s$", head) or not head
    return "" if plural or gloss[0].isupper() and lexfile != "18" else article(gloss)


def usable(s, common):
    """Whether a synset is plain English: a common word, a short gloss, nothing technical or rude."""
    plain = re.fullmatch(r"[A-Za-z][a-z]+([ -][A-Za-z]?[a-z]+)?", s.word or "") and s.gloss.isascii()
    length = len(s.gloss.split())
    if not plain or not 2 <= length <= 24 or re.search(r"[\d`_/\[]", s.gloss):
        return False
    if s.count < 5 and TECHNICAL.search(s.gloss) or RUDE.search(" ".join([*s.words, s.gloss, *s.examples])):
        return False
    return s.count > 0 or bool(s.examples) or (s.first and common[s.word] > 3)


def named(s):
    """The noun with its article, where it takes one."""
    if s.word[0].isupper() or s.lexfile not in COUNTED or s.gloss.startswith("the act of"):
        return s.word
    return article(s.word)


def definition(s):
    """What the word means, as one sentence."""
    if s.pos == "n":
        return f"{capital(named(s))} is {s.gloss}."
    if s.pos == "v":
        return f"To {s.word} is to {s.gloss}."
    return f"{capital(s.word)} means {s.gloss}."


def question(s, rng):
    """A question that `definition` answers."""
    if s.pos == "n":
        who = "Who" if s.lexfile == "18" and s.word[0].isupper() else "What"
        forms = [f"{who} is {named(s)}?"] * 6 + [f"{who} is {named(s)}", f"What does {s.word} mean?",
                                                f"Define {s.word}.", f"Tell me what {named(s)} is.",
                                                f"Explain what {named(s)} is."]
        return rng.choice(forms)
    verb = "to " if s.pos == "v" else ""
    return rng.choice([f"What does {s.word} mean?"] * 3 + [f"What does it mean {verb}{s.word}?" if verb else
                      f"What is the meaning of {s.word}?", f"Define {s.word}.", f"Explain the word {s.word}."])


def sentences(s):
    """The examples that are whole sentences, with capital and full stop."""
    for text in s.examples:
        if text.isascii() and 4 <= len(text.split()) <= 24 and not re.search(r"[\d`_/\[(]", text):
            if SUBJECT.match(text) or FINITE.search(text):
                mark = "?" if ASKS.match(text) else "."
                yield capital(text.strip()) + ("" if text.strip()[-1] in ".!?" else mark)


def listing(names):
    """`a, b and c`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def dialogue(s, synsets, rng):
    """Questions about one synset with their answers; the first asks what it means."""
    turns = [(question(s, rng), definition(s))] if s.first or s.count > 4 else []
    used = [t for t in sentences(s) if re.search(rf"\b{re.escape(s.word[:max(3, len(s.word) - 2)])}", t, re.I)]
    if used:
        it = "it" if turns else s.word
        asks = [f"Use {it} in a sentence.", f"Give me an example of {it}." if turns else f"Use the word {s.word}.",
                f"Write a sentence with the word {s.word}.", f"Use {s.word} in a sentence."]
        turns.append((rng.choice(asks), rng.choice(used)))
    for other, which in s.links["!"]:
        word = s.words[int(which[:2], 16) - 1] if which != "0000" else s.word
        if other in synsets and word == s.word:
            target = synsets[other].words[int(which[2:], 16) - 1]
            turns.append((rng.choice([f"What is the opposite of {word}?", f"What is the antonym of {word}?"]),
                          f"The opposite of {word} is {target}."))
            break
    same = [w for w in s.words if w != s.word and w.isalpha() and w.islower()]
    if same and s.count:
        turns.append((rng.choice([f"What is another word for {s.word}?", f"Give me a synonym for {s.word}."]),
                      f"Another word for {s.word} is {same[0]}."))
    kinds = [synsets[i].word for i, _ in s.links["~"] if i in synsets and synsets[i].word.islower()]
    if s.pos == "n" and len(kinds) >= 3 and s.first and s.lexfile in {"05", "06", "13", "18", "20"}:
        some = [article(k) for k in rng.sample(kinds, 3)]
        turns.append((f"What kinds of {s.word} are there?", f"{capital(listing(some))} are kinds of {s.word}."))
    parents = [synsets[i] for i, _ in s.links["@"] if i in synsets]
    if s.pos == "n" and parents and s.first and s.lexfile in {"05", "06", "13", "20"} and rng.random() < 0.5:
        kind = parents[0].word
        turns.append((f"Is {named(s)} {article(kind)}?", f"Yes, {named(s)} is a kind of {kind}."))
    return turns


def capitals(synsets):
    """Questions for the capitals of countries."""
    for s in synsets.values():
        match = re.match(r"(?:the )?capital(?: and [a-z ]+)? of ((?:the )?[A-Z][A-Za-z ]+?)$", s.gloss.split(",")[0])
        if match and s.pos == "n" and s.word[0].isupper():
            place = match.group(1)
            yield s.id, f"What is the capital of {place}?", f"The capital of {place} is {s.word}."
