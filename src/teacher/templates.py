"""The wording of the prompts: three per kind of item, `{history}` before `{candidates}`."""


def _templates(noun: str, verb: str) -> list[str]:
    return [
        f"A user {verb} these {noun}s: {{history}}. Which {noun} is next? "
        f"Pick one of these candidates: {{candidates}}. Next {noun}:",
        f"History of {noun}s: {{history}}. Candidates: {{candidates}}. The best {noun} to suggest now is",
        f"Given that somebody {verb} {{history}}, name the one {noun} out of {{candidates}} that comes next. Answer:",
    ]


TEMPLATES = {
    "default": _templates("item", "chose"),
    "movie": _templates("movie", "watched"),
    "artist": _templates("artist", "listened to"),
    "game": _templates("game", "played"),
}
