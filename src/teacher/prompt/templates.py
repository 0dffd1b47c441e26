"""The wording of the prompts: three per kind of item, `{history}` before `{candidates}`, and one without candidates."""


def _templates(noun: str, verb: str) -> list[str]:
    return [
        f"A user {verb} these {noun}s: {{history}}. Which {noun} is next? "
        f"Pick one of these candidates: {{candidates}}. Next {noun}:",
        f"History of {noun}s: {{history}}. Candidates: {{candidates}}. The best {noun} to suggest now is",
        f"Given that somebody {verb} {{history}}, name the one {noun} out of {{candidates}} that comes next. Answer:",
    ]


def _open_template(noun: str, verb: str) -> str:
    return f"A user {verb} these {noun}s: {{history}}. Which {noun} is next? Next {noun}:"


_KINDS = {
    "default": ("item", "chose"),
    "movie": ("movie", "watched"),
    "artist": ("artist", "listened to"),
    "game": ("game", "played"),
}
TEMPLATES = {name: _templates(*kind) for name, kind in _KINDS.items()}
OPEN_TEMPLATES = {name: _open_template(*kind) for name, kind in _KINDS.items()}
