"""Wordings: the presets' texts to the letter, a YAML of one's own, single keys on top, and what is refused."""

import pytest

from src.core.errors import UserError
from src.teacher.config import TeacherConfig
from src.teacher.prompt.wording import PromptConfig, read_wording

MOVIES = [
    "A user watched these movies: {history}. Which movie is next? Pick one of these candidates: {candidates}. "
    "Next movie:",
    "History of movies: {history}. Candidates: {candidates}. The best movie to suggest now is",
    "Given that somebody watched {history}, name the one movie out of {candidates} that comes next. Answer:",
]
OPEN = "A user watched these movies: {history}. Which movie is next? Next movie:"


@pytest.mark.parametrize(
    ("name", "noun", "verb"),
    [
        ("default", "item", "chose"),
        ("movie", "movie", "watched"),
        ("artist", "artist", "listened to"),
        ("game", "game", "played"),
    ],
)
def test_the_presets_differ_in_noun_and_verb(name, noun, verb):
    wording = read_wording(name)
    assert wording.templates == [text.replace("movie", noun).replace("watched", verb) for text in MOVIES]
    assert wording.open_template == OPEN.replace("movie", noun).replace("watched", verb)


def test_single_keys_go_before_the_template():
    wording = read_wording("movie", PromptConfig(item_noun="film", open_question="{history}, and then?"))
    assert wording.templates[1] == MOVIES[1].replace("movie", "film")
    assert wording.open_template == "{history}, and then?"
    plural = read_wording("movie", PromptConfig(item_noun_plural="motion pictures"))
    assert plural.templates[1] == MOVIES[1].replace("movies", "motion pictures")
    config = TeacherConfig(name="ilora", prompt_template="game", prompt=PromptConfig(verb="bought"))
    assert config.wording == read_wording("game", PromptConfig(verb="bought")) != read_wording("game")


def test_a_yaml_of_ones_own_has_what_it_lacks_from_the_default(tmp_path):
    own = tmp_path / "songs.yaml"
    own.write_text(
        "item_noun: 曲\nitem_noun_plural: 曲\nquestions: ['{item_noun_plural}：{history}。次は？ {candidates}']\n"
    )
    wording = read_wording(str(own))
    assert wording.templates == ["曲：{history}。次は？ {candidates}"]
    assert wording.open_template == "A user chose these 曲: {history}. Which 曲 is next? Next 曲:"
    assert read_wording(str(own), PromptConfig(verb="heard")).verb == "heard"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "item_noums: song\n",
            r"own\.yaml: teacher\.prompt\.item_noums: unknown key; did you mean teacher\.prompt\.item_",
        ),
        ("item_noun: ''\n", r"own\.yaml: teacher\.prompt\.item_noun='': must be a text in one line"),
        ("item_noun: [a]\n", r"own\.yaml: teacher\.prompt\.item_noun=\['a'\]: "),
        ("questions: '{history} {candidates}'\n", r"own\.yaml: teacher\.prompt\.questions="),
        ("questions: [[a]]\n", r"own\.yaml: teacher\.prompt\.questions\[0\]=\['a'\]: must be a text in one line"),
        ("- a\n", r"own\.yaml: \['a'\] stands where a section with keys is expected"),
        ("a: b: c\n", r"own\.yaml: cannot be read as YAML: mapping values are not allowed here .*line 1"),
        ("item_noun: ${nothing}\n", r"own\.yaml: cannot be read as YAML: Interpolation key 'nothing' not found"),
        ("\0", r"own\.yaml: cannot be read as YAML: "),
        ("a: &a [x]\nb: [*a, *a]\n", r"own\.yaml: cannot be read as YAML: an alias \(\*name\), or more than 30 levels"),
        ("[" * 31 + "]" * 31, r"own\.yaml: cannot be read as YAML: an alias \(\*name\), or more than 30 levels"),
        ("verb: a\nitem_noun: " + "${verb}" * 21, r"own\.yaml: cannot be read as YAML: more than 20 references"),
        ("# " + "x" * 2**18, r"own\.yaml: cannot be read as YAML: more than 262144 characters"),
        ("!!int x", r"own\.yaml: cannot be read as YAML: "),
        ("verb: !!python/name:os.system", r"own\.yaml: cannot be read as YAML: could not determine a constructor"),
        ("song\n", r"own\.yaml: teacher\.prompt\.song: unknown key"),
    ],
)
def test_what_is_wrong_with_a_yaml_of_ones_own_names_it(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_wording(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("name", ["../prompt/movie", "song", "nowhere.yaml", "", "Movie"])
def test_a_template_that_is_not_there_names_those_that_are(name):
    allowed = r"must be one of artist, default, game, movie, or a \.yaml file of your own that exists"
    with pytest.raises(UserError, match=rf"teacher\.prompt_template='{name}': {allowed}"):
        read_wording(name)


@pytest.mark.parametrize("word", ["", " ", "song ", "so\nng", "so\x1bng", "so\u2028ng", "{history}", "a}", "[CansEmb]"])
@pytest.mark.parametrize("key", ["item_noun", "item_noun_plural", "verb"])
def test_a_word_that_cannot_stand_in_a_prompt_is_refused(key, word):
    with pytest.raises(UserError, match=rf"^teacher\.prompt\.{key}=.*: must be a text in one line without blanks"):
        read_wording("movie", PromptConfig(**{key: word}))


@pytest.mark.parametrize(
    "question",
    [
        "",
        "{history}",
        "{candidates}",
        "{candidates} {history}",
        "{history} {history} {candidates}",
        "{history} {candidates} {candidates}",
        "{history} {candidates} {title}",
        "{history} {candidates} {",
        "{{history}} {candidates}",
        "{history!r} {candidates}",
        "{history}\n{candidates}",
        "{history} {candidates} ",
        "{history} [PH] {candidates}",
    ],
)
def test_a_question_without_its_places_is_refused(question):
    allowed = r"must be a text in one line with \{history\} before \{candidates\}, each once, "
    with pytest.raises(UserError, match=rf"^teacher\.prompt\.questions\[1\]=.*: {allowed}"):
        read_wording("movie", PromptConfig(questions=[MOVIES[0], question]))


def test_other_refused_questions():
    with pytest.raises(UserError, match=r"^teacher\.prompt\.questions=\[\]: must be a list with a question"):
        read_wording("movie", PromptConfig(questions=[]))
    with pytest.raises(
        UserError, match=r"^teacher\.prompt\.open_question='\{history\} \{candidates\}': must be a text"
    ):
        read_wording("movie", PromptConfig(open_question="{history} {candidates}"))
