"""Which emoji are drawn for what: the base model's subjects and styles, the LoRAs', and the judge's."""

from __future__ import annotations

from collections.abc import Iterable

# word in captions -> name of the emoji; their drawings are alike in most sets, so that a word has a shape
BASE = {
    "airplane": "airplane", "apple": "red-apple", "balloon": "balloon", "banana": "banana", "bell": "bell", "boat":
    "sailboat", "bus": "bus", "butterfly": "butterfly", "cake": "birthday-cake", "car": "automobile", "carrot":
    "carrot", "castle": "castle", "cherries": "cherries", "cow": "cow", "crown": "crown", "duck": "duck", "elephant":
    "elephant", "fish": "fish", "guitar": "guitar", "house": "house", "key": "key", "palm": "palm-tree", "pig": "pig",
    "pizza": "pizza", "rabbit": "rabbit", "rose": "rose", "star": "star", "strawberry": "strawberry", "umbrella":
    "umbrella", "whale": "whale",
}  # fmt: skip

# the content LoRAs' subjects: word -> the set whose drawing is the subject; the emoji has the same name
SUBJECTS = {
    "octopus": "fluent-emoji-flat", "penguin": "fluent-emoji-flat", "rocket": "fluent-emoji-flat",
    "owl": "emojione", "cat": "emojione", "snail": "emojione",
}  # fmt: skip

PLAIN = "fluent-emoji-flat"  # the set that captions do not name, as captions of photographs rarely say "photograph"
BASE_STYLES = {PLAIN: None, "noto": "noto", "twemoji": "twemoji", "emojione": "emojione"}  # set -> word in captions
STYLES = {  # the style LoRAs: name -> set
    "lineart": "fluent-emoji-high-contrast", "monotone": "emojione-monotone", "glossy": "fluent-emoji",
    "retro": "noto-v1", "cartoon": "streamline-emojis",
}  # fmt: skip
UNSEEN = "streamline-emojis"  # the set from which the autoencoder did not learn either

# sets that share one drawing of each subject, so that the true picture of a subject in a style exists
SAME_DRAWINGS = {
    PLAIN: ("fluent-emoji", "fluent-emoji-high-contrast"),
    "emojione": ("emojione-monotone",),
}


def list_truths() -> dict[tuple[str, str], tuple[str, str]]:
    """(content, style) -> (set, name) of the true picture, for the pairs that have one."""
    return {
        (subject, style): (its, subject)
        for subject, own in SUBJECTS.items()
        for style, its in STYLES.items()
        if its in SAME_DRAWINGS[own]
    }

KNOWN = {*BASE.values(), *SUBJECTS}

# parts of the names of emoji that are no single thing: signs, people, places
NO_OBJECT = (
    "-sign", "-symbol", "1st", "2nd", "3rd", "admission", "aquarius", "aries", "arrival", "arrow", "asterisk", "atom",
    "ballot", "bars", "beach", "bell-with", "biohazard", "boy", "bridge", "building", "bust", "busts", "button",
    "cancer", "capricorn", "card-index", "cascade", "chart", "church", "circled-m", "city", "clinking", "clock",
    "club-suit", "collision", "comet", "construction", "copyright", "couple", "cross", "curly-loop", "currency",
    "customs", "cyclone", "dashing", "department", "derelict", "desert", "detective", "diamond", "dizzy",
    "double-curly", "ear-of", "eight-", "eject", "eye-in", "eyes", "face", "factory", "family", "fast-", "ferry",
    "finger", "fist", "flag", "fleur", "flexed", "fog", "footprints", "fountain", "gemini", "girl", "globe", "goblin",
    "guard", "hair", "hand", "heart", "high-voltage", "hole", "horizontal-traffic", "horse-racing", "hospital",
    "hot-springs", "hotel", "hourglass", "houses", "hundred", "inbox", "incoming", "index", "infinity", "information",
    "input", "japanese", "joker", "kaaba", "keycap", "last-", "left-", "leo", "level-slider", "libra", "link",
    "mahjong", "man", "map", "mark", "men", "menorah", "metro", "milky", "moai", "moon", "motorway", "mount", "mouth",
    "mrs-", "muted", "national", "next-", "night", "no-", "non-", "nose", "office", "ogre", "om-", "oncoming",
    "ophiuchus", "outbox", "package", "page-", "pass-", "passport", "pause", "paw", "peace", "people", "performing",
    "person", "pisces", "place", "play", "plus", "potable", "prince", "prohibited", "queen", "radioactive",
    "railway-track", "record", "red-triangle", "registered", "right-", "sagittarius", "santa", "school", "scorpio",
    "selfie", "shinto", "shooting", "skier", "skin-tone", "snowboarder", "spade-suit", "sparkle", "speaker-low",
    "speaker-medium", "speaking", "square", "stadium", "star-and", "star-of", "station", "statue", "stop", "sunrise",
    "sunset", "synagogue", "taurus", "thirty", "thought", "thumb", "tongue", "trident", "vertical-traffic",
    "vibration", "virgo", "volcano", "vulcan", "warning", "water-closet", "wavy", "wheel-of", "woman", "women",
    "world", "yin", "zodiac", "zzz",
)  # fmt: skip


def list_things(names: Iterable[str]) -> list[str]:
    """Those of `names` that are single things, in the alphabet's order."""
    return sorted(n for n in names if n in KNOWN or not any(part in f"{n}-" for part in NO_OBJECT))


def list_others(names: Iterable[str]) -> list[str]:
    """Those of `names` that are single things and no LoRA's subject: what the autoencoder and the judge learn from."""
    return [name for name in list_things(names) if name not in SUBJECTS]
