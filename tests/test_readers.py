import gzip
import io
import json
import math
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from hashlib import blake2b

import pytest

from selfjudge.errors import ConfigError, DataError
from selfjudge.forms import example_from_row
from selfjudge.readers import content_id, read_examples
from selfjudge.records import Example, Message, Response, Score

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
FULL = Example(
    id="7",
    messages=(Message("system", "Be brief."), Message("user", "2 + 2?")),
    category="math",
    responses=(Response("4", (5, 2), -0.25), Response("five", (6,), -2.0, finished=False)),
    gold=(0,),
    reference="4",
    prompt_ids=(1, 9),
    scores=(Score(1.5, 0.9), Score(math.inf, 0.5, truncated=True, reason="cut")),
    strengths=(0.5, -0.5),
    tags={"subset": "sums", "nested": {"a": [1]}},
)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(example):
    return [response.text for response in example.responses]


def problem(path, **options):
    """The whole message, which must be one line."""
    with pytest.raises(DataError) as error:
        list(read_examples(path, **options))
    message = str(error.value)
    assert "\n" not in message
    return message


# --- every format gives the same examples


def parquet(rows):
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=1)
    return buffer.getvalue()


ROWS = [
    {"id": "a", "prompt": "Grüße, 世界\nzwei", "category": "chat", "response": 'x, "y"'},
    {"id": "b", "prompt": "1+1?", "category": "math", "response": None},
]
TABLE = 'id,prompt,category,response\na,"Grüße, 世界\nzwei",chat,"x, ""y"""\n\nb,1+1?,math,\n'
FORMATS = {
    "rows.jsonl": jsonl(ROWS).encode(),
    "rows.ndjson": jsonl(ROWS).replace("\n", "\r\n").encode(),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "keyed.json": json.dumps({row["id"]: {k: v for k, v in row.items() if k != "id"} for row in ROWS}).encode(),
    "rows.csv": TABLE.encode(),
    "rows.tsv": TABLE.replace(",", "\t").replace("Grüße\t", "Grüße,").replace("x\t", "x,").encode(),
    "rows.parquet": parquet(ROWS),
}


PARQUET_FORMS = ("plain", "upper")  # it is binary and compresses by itself
FORMS = [
    (name, form)
    for name in FORMATS
    for form in ("plain", "upper", "bom", "gz")
    if form in PARQUET_FORMS or not name.endswith(".parquet")
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_formats_agree(tmp_path, name, form):
    content = FORMATS[name]
    if form == "bom":
        content = b"\xef\xbb\xbf" + content
    if form == "gz":
        name, content = name + ".gz", gzip.compress(content)
    if form == "upper":
        name = name.upper()
    examples = list(read_examples(write(tmp_path / name, content)))
    assert [(e.id, e.messages[0].content, e.category, texts(e)) for e in examples] == [
        ("a", "Grüße, 世界\nzwei", "chat", ['x, "y"']),
        ("b", "1+1?", "math", []),
    ]


def test_text_is_one_prompt_a_line(tmp_path):
    path = write(tmp_path / "p.txt", "\ufefffirst \n\n  second\r\nthird")
    assert [e.messages for e in read_examples(path)] == [
        (Message("user", text),) for text in ("first ", "  second", "third")
    ]


def test_standard_input_is_jsonl(child_env):
    code = "from selfjudge.readers import *\nfor e in read_examples('-'): print(e.id, e.messages[0].content)"
    rows = jsonl([*ROWS[1:], {"prompt": " "}])
    done = subprocess.run([sys.executable, "-c", code], input=rows, capture_output=True, text=True, env=child_env)
    assert done.stdout == "b 1+1?\n"
    assert done.stderr.splitlines()[-1].endswith("DataError: <stdin>, row 2: the prompt is empty")


def test_own_form_round_trip(tmp_path):
    missing = replace(FULL, id="8", scores=(Score(math.nan, reason="no label"), Score(0.0)), gold=())
    path = write(tmp_path / "own.jsonl", jsonl([FULL.to_json() | {"scores": []}, missing.to_json()]))
    first, second = read_examples(path)
    assert first == replace(FULL, scores=())
    assert second.to_json() == missing.to_json()  # NaN is not equal to itself, null is
    assert math.isnan(second.scores[0].value)
    assert math.isnan(second.scores[0].label_mass)


def test_own_form_round_trip_through_parquet(tmp_path):
    """Parquet fills in absent fields of an object with null."""
    example = replace(FULL, tags={"subset": "sums"}, responses=(Response("a", (1,), -1.0), Response("b")), scores=())
    path = write(tmp_path / "own.parquet", parquet([example.to_json()]))
    assert list(read_examples(path)) == [example]


def test_only_ids_are_held(tmp_path):
    """20 MB of rows pass through in less than 2 MB."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for index in range(200):
            file.write(json.dumps({"prompt": f"{index} " + "x" * 100_000}) + "\n")
    tracemalloc.start()
    assert sum(1 for _ in read_examples(path)) == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_long_csv_cell(tmp_path):
    path = write(tmp_path / "long.csv", "prompt\n" + "x" * 200_000 + "\n")
    assert len(next(read_examples(path)).messages[0].content) == 200_000


# --- what a row means


@pytest.mark.parametrize(
    ("row", "contents"),
    [
        ({"prompt": "p", "instruction": "no"}, ["p"]),
        ({"prompt": None, "question": "q"}, ["q"]),
        ({"prompt": [{"role": "system", "content": "s"}, USER]}, ["s", "Hi"]),
        ({"messages": [USER, ANSWER, USER]}, ["Hi", "Hello", "Hi"]),
        ({"instruction": "i", "input": ""}, ["i"]),
        ({"instruction": "i", "input": "x"}, ["i\n\nx"]),
        ({"instruction": "i", "instances": [{"input": "x", "output": "y"}]}, ["i\n\nx"]),
        ({"turns": ["one", "two"]}, ["one"]),
        ({"input": "x", "system_prompt": "s"}, ["s", "x"]),
        ({"messages": [{"role": "system", "content": "s"}, USER], "system": "s"}, ["s", "Hi"]),
        ({"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]}, ["Hi"]),
    ],
)
def test_prompt_columns(row, contents):
    assert [message.content for message in example_from_row(row).messages] == contents


@pytest.mark.parametrize(
    ("row", "responses", "gold"),
    [
        ({"response": "a"}, ["a"], None),
        ({"response": ""}, [""], None),
        ({"responses": ["a", {"text": "b"}]}, ["a", "b"], None),
        ({"responses": ["a", "b"], "gold": [1]}, ["a", "b"], (1,)),
        ({"responses": ["a"], "gold": []}, ["a"], ()),
        ({"completions": [{"model": "m", "completion": "a"}, "b"]}, ["a", "b"], None),
        ({"completion": "a", "output": "no"}, ["a"], None),
        ({"completion": [ANSWER]}, ["Hello"], None),
        ({"chosen": "a", "rejected": "b"}, ["a", "b"], (0,)),
        ({"chosen": ["a", "b"], "rejected": ["c"], "response": "no"}, ["a", "b", "c"], (0, 1)),
        ({"chosen": [USER, ANSWER], "rejected": [ANSWER | {"content": "x"}]}, ["Hello", "x"], (0,)),
        ({"chosen": [[USER, ANSWER], [USER, ANSWER]], "rejected": "x"}, ["Hello", "Hello", "x"], (0, 1)),
        ({"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": "x"}, ["Hello", "x"], (0,)),
        ({"messages": [USER, ANSWER]}, ["Hello"], None),
        ({"output_1": "a", "output_2": "b", "label": 2}, ["a", "b"], (1,)),
        ({"output_1": "a", "output_2": "b", "label": "1"}, ["a", "b"], (0,)),
        ({"output_1": "a", "output_2": "b"}, ["a", "b"], None),
    ],
)
def test_response_columns(row, responses, gold):
    example = example_from_row({"prompt": "Hi"} | row)
    assert (texts(example), example.gold, example.messages) == (responses, gold, (Message("user", "Hi"),))


def test_prompt_text_beside_whole_conversations():
    before = [{"role": "system", "content": "s"}, USER]
    row = {"prompt": "Hi", "chosen": [*before, ANSWER], "rejected": [*before, {**ANSWER, "content": "no"}]}
    assert [message.role for message in example_from_row(row).messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("value", "reference"), [("4", "4"), (4, "4"), (0.5, "0.5"), (["a", "b"], "a"), (None, None), ("", None)]
)
def test_reference(value, reference):
    assert example_from_row({"question": "q", "answer": value}).reference == reference


def test_rm_bench_row():
    row = {"id": 8, "prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "subset": "s", "error": "x"}
    example = example_from_row(row)
    assert (example.id, texts(example), example.gold) == ("8", list("abcdef"), (0, 1, 2))
    assert example.tags == {"subset": "s", "styles": ["concise", "detailed", "detailed markdown"] * 2}


def test_tags_are_few_and_small():
    row = {"prompt": "p", "source": "web", "label": True, "index": 0, "other": 1, "type": "x" * 300, "key": math.nan}
    assert example_from_row(row).tags == {"source": "web", "label": True, "index": 0}
    assert example_from_row({**row, "tags": {"other": 2, "source": "mine"}}).tags["source"] == "mine"
    assert example_from_row({"turns": ["a", "b", "c"]}).tags == {"later_turns": ["b", "c"]}


def test_categories_of_another_vocabulary(tmp_path):
    path = write(tmp_path / "q.jsonl", jsonl([{"prompt": "p", "category": "writing"}]))
    example = next(read_examples(path, keep_categories=False))
    assert (example.category, example.tags) == (None, {"source_category": "writing"})
    assert example_from_row({"prompt": "p", "category": ""}).category is None


# --- ids


def test_derived_ids_depend_on_the_prompt_only(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b", "response": "x"}, {"prompt": "a"}, {"prompt": "a", "id": ""}]
    forward = [e.id for e in read_examples(write(tmp_path / "f.jsonl", jsonl(rows)))]
    backward = [e.id for e in read_examples(write(tmp_path / "b.jsonl", jsonl(rows[::-1])))]
    a, b = (content_id((Message("user", text),)) for text in "ab")
    assert forward == [a, b, f"{a}-2", f"{a}-3"]
    assert sorted(forward) == sorted(backward)
    assert a == blake2b(b'[["user","a"]]', digest_size=8).hexdigest()  # stored files depend on it


def test_given_ids_must_differ(tmp_path):
    path = write(tmp_path / "p.jsonl", jsonl([{"id": 1, "prompt": "a"}, {"prompt": "x"}, {"id": "1", "prompt": "b"}]))
    assert problem(path).startswith(f"{path}, row 3: id '1' is that of row 1 too; ids must differ")
    assert len({e.id for e in read_examples(path, keep_ids=False)}) == 3


# --- errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', ", row 3: malformed JSON: Expecting value (line 2, column 1)"),
        ("a.jsonl", "[\n", ", row 1: malformed JSON: Expecting value (line 2, column 1); an array of objects belongs"),
        ("a.jsonl", '[{"prompt": "a"}]\n', ", row 1: must be a JSON object, found list; an array of objects belongs"),
        ("a.jsonl", '"a"', ", row 1: must be a JSON object, found str"),
        ("a.jsonl", '{"prompt": "a", "x": NaN}', ", row 1: malformed JSON: NaN is no JSON number; write null"),
        ("a.jsonl", '{"prompt": "\\ud83d"}', ", row 1: malformed JSON: half a surrogate pair"),
        ("a.jsonl", "[" * 100_000, ", row 1: malformed JSON: maximum recursion depth"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}', ", row 2: not UTF-8 (byte 0xe9 at position 13)"),
        ("a.txt", "a".encode("utf-16"), ", row 1: not UTF-8 (byte 0xff at position 1)"),
        ("a.jsonl", "", ": no rows"),
        ("a.jsonl", "\n \n", ": no rows"),
        ("a.txt", "", ": no rows"),
        ("a.json", "", ": no rows"),
        ("a.json", "[]", ": no rows"),
        ("a.csv", "", ": no rows"),
        ("a.csv", "prompt,id\n", ": no rows"),
        ("a.json", '[{"prompt": "a"}, 5]', ", row 2: must be a JSON object, found int; the file must hold a list"),
        ("a.json", '{"prompt": "a"}', ", row 1: must be a JSON object, found str; the file must hold a list"),
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}', ": malformed JSON: Extra data (line 2, column 1); one object"),
        ("a.json", '[{"prompt": "a"},', ": malformed JSON: Expecting value (column 18)"),
        ("a.json", "5", ": must hold a list of objects"),
        ("a.csv", "prompt,id\na,1\nb\n", ", row 3: 1 cells, but the header has 2 columns"),
        ("a.csv", "prompt,id\na,1,2\n", ", row 2: 3 cells, but the header has 2 columns"),
        ("a.csv", 'prompt,id\na,1\n"b,2\nc,3\n', ", row 3: malformed table: unexpected end of data"),
        ("a.csv", "prompt,prompt\na,1\n", ", row 1: the header names the column 'prompt' twice"),
        ("a.csv", b"prompt\na\n\xff\n", ", row 3: not UTF-8"),
        ("a.csv", "id,prompt\n1,\n", ", row 2: the prompt is empty"),
        ("a.parquet", "no", ": damaged Parquet file: "),
        ("a.jsonl.gz", "no", ": damaged gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-9], ": damaged gzip file"),
        ("a.parquet.gz", "", ": unknown file type '.parquet.gz'; allowed: .jsonl, "),
        ("a.xlsx", "", ": unknown file type '.xlsx'; allowed: .jsonl, .ndjson, .json, .csv, .tsv, .txt, .parquet"),
        ("a", "", ": unknown file type ''"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    assert problem(path).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"promt": "a", "x": 1}, "no prompt: found columns promt, x; one of messages, prompt, instruction, question"),
        ({"promt": "a"}, "did you mean 'prompt' for 'promt'?"),
        ({}, "no prompt: found columns (none)"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": None}, "the prompt is empty"),
        ({"prompt": 5}, "'prompt' must be a text, found a number"),
        ({"prompt": []}, "'prompt' must be a list of messages, found an empty list"),
        ({"turns": []}, "'turns' must be a list of texts, found an empty list"),
        ({"messages": "a"}, "'messages' must be a list of messages, found a text"),
        ({"messages": ["a"]}, "'messages' must hold messages with 'role' and 'content', found a text"),
        (
            {"messages": [{"role": "human", "content": "a"}]},
            "unknown role 'human' in 'messages'; allowed: system, user",
        ),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "content of a message in 'messages' must be a text"),
        ({"messages": [{"role": "system", "content": "a"}]}, "must end with a user turn, found system turn"),
        ({"messages": [ANSWER]}, "must end with a user turn, found no turn"),
        ({"messages": [USER, ANSWER], "response": "b"}, "end with an assistant turn that is none of the responses"),
        ({"messages": [{"role": "system", "content": "a"}, USER], "system": "b"}, "the system turn"),
        ({"prompt": "a", "chosen": "b"}, "chosen and rejected are needed together"),
        ({"prompt": "a", "chosen": 5, "rejected": "b"}, "'chosen' must be a text, found a number"),
        ({"chosen": "a", "rejected": "b"}, "no prompt: found columns chosen, rejected"),
        ({"chosen": [USER], "rejected": [USER]}, "the conversation in 'chosen' must end with an assistant turn"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, USER, ANSWER]}, "they must share the prompt"),
        ({"prompt": "b", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "the prompt column and the turns"),
        ({"prompt": "a", "responses": [{"txt": "b"}]}, "each object in 'responses' needs a text"),
        ({"prompt": "a", "responses": [{"text": "b", "token_ids": [1.5]}]}, "'responses.token_ids' must be a list"),
        ({"prompt": "a", "responses": [{"text": "b", "logprob": "x"}]}, "'responses.logprob' must be a number"),
        ({"prompt": "a", "responses": [{"text": "b", "finished": 1}]}, "'responses.finished' must be true or false"),
        ({"prompt": "a", "responses": ["b"], "gold": [1]}, "gold must be different indices of its 1 responses"),
        ({"prompt": "a", "responses": ["b"], "gold": [0, 0]}, "gold must be different indices"),
        ({"prompt": "a", "responses": ["b"], "gold": 0}, "'gold' must be a list"),
        ({"prompt": "a", "responses": ["b"], "scores": [], "strengths": [1, 2]}, "strengths must be a list with one"),
        ({"prompt": "a", "responses": ["b"], "scores": [1]}, "scores must hold objects with 'value'"),
        ({"prompt": "a", "responses": ["b"], "scores": [{"value": "1"}]}, "'scores.value' must be a number"),
        ({"prompt": "a", "output_1": "b", "output_2": "c", "label": 0}, "label must be 1 or 2"),
        ({"prompt": "a", "id": [1]}, "id must be a text or a whole number, found a list"),
        ({"prompt": "a", "id": True}, "id must be a text or a whole number"),
        ({"prompt": "a", "tags": "x"}, "tags must be an object, found a text"),
        ({"prompt": "a", "answer": {"text": "x"}}, "'answer' must be a text, found an object"),
        ({"prompt": "a", "category": "Maths"}, "unknown category 'Maths'; allowed: chat, code, math, safety; did you "),
        ({"prompt": "a", "category": "maths"}, "did you mean 'math'?"),
        ({"prompt": "a", "category": "zzz"}, "Without the column the model finds the category itself"),
        ({"prompt": "a", "category": ["chat"]}, "unknown category ['chat']"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", "\n" + jsonl([row]))
    found = problem(path)
    assert found.startswith(f"{path}, row 2: ")
    assert message in found


def test_files_that_cannot_be_opened(tmp_path):
    """These are reported by the call itself, before the first row is asked for."""
    write(tmp_path / "prompts.jsonl", "")
    with pytest.raises(DataError, match=r"prompt\.jsonl: no such file; did you mean .*prompts\.jsonl\?"):
        read_examples(tmp_path / "prompt.jsonl")
    with pytest.raises(DataError, match="is a folder; give a file"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match=r"zzz/qqq\.jsonl: no such file$"):
        read_examples(tmp_path / "zzz/qqq.jsonl")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'selfjudge[parquet]'" in problem(write(tmp_path / "a.parquet", FORMATS["rows.parquet"]))


@pytest.mark.parametrize(
    ("need", "row", "step"),
    [
        ("responses", {}, "`selfjudge sample` adds them"),
        ("scores", {"response": "x"}, "`selfjudge judge` adds them"),
        ("strengths", {"response": "x"}, "`selfjudge select` adds them"),
        ("gold", {"response": "x"}, "give columns chosen and rejected"),
    ],
)
def test_needed_fields(tmp_path, need, row, step):
    full = {key: value for key, value in FULL.to_json().items() if key != "scores"}
    full["scores"] = [{"value": 1.0}, {"value": None}]
    path = write(tmp_path / "a.jsonl", jsonl([full, {"prompt": "p"} | row]))
    assert problem(path, need=(need,)).startswith(f"{path}, row 2: no {need}: {step}")
    assert len(list(read_examples(path))) == 2


def test_unknown_need(tmp_path):
    with pytest.raises(ConfigError, match="unknown field 'score' in need; allowed: responses, scores"):
        read_examples(tmp_path, need=("score",))


def test_gold_that_names_none_is_known(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"prompt": "p", "responses": ["x"], "gold": []}]))
    assert next(read_examples(path, need=("gold",))).gold == ()


def test_reading_imports_nothing_heavy(child_env):
    code = "import sys, selfjudge.readers, selfjudge.store; print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_env)
    assert done.stdout == "set()\n"


# --- real files

NO_PROMPTS = {
    "alpaca_eval/gpt4turbo_preferences.csv.gz",
    "alpaca_eval/leaderboard_alpacaeval2.csv",
    "mt_bench/judge_prompts.jsonl",
    "mt_bench/mt_bench_reference_gpt4.jsonl",
    "rewardbench/composition.json",
}


def real_files(shared_data):
    """Path -> number of rows, from the table in the README."""
    table = re.findall(r"^\| (\S+/\S+) \| (\d+) \|", (shared_data / "README.md").read_text(), re.MULTILINE)
    return {path: int(rows) for path, rows in table}


def options_of(path):
    repeats_ids = "open_instruct_human_eval" in path
    other_categories = path.startswith("mt_bench/")
    return {"keep_ids": not repeats_ids, "keep_categories": not other_categories}


def test_real_files_are_readable(shared_data):
    files = real_files(shared_data)
    assert len(files) > 40
    assert set(files) >= NO_PROMPTS
    counts = {
        path: sum(1 for _ in read_examples(shared_data / path, **options_of(path))) for path in set(files) - NO_PROMPTS
    }
    assert counts == {path: rows for path, rows in files.items() if path not in NO_PROMPTS}


def test_real_files_without_prompts_say_so(shared_data):
    for path in NO_PROMPTS:
        assert re.search("no prompt: found columns|must be a JSON object", problem(shared_data / path)), path


@pytest.mark.parametrize("name", ["chat_filtered.json", "code_filtered.json.gz", "safety-refuse_filtered.json"])
def test_real_rm_bench(shared_data, name):
    for example in read_examples(shared_data / "rm_bench" / name, need=("responses", "gold")):
        assert (len(example.responses), example.gold) == (6, (0, 1, 2))
        assert set(example.tags) >= {"subset", "styles"}


def test_real_preference_files(shared_data):
    for name in ("rewardbench/rebuilt_llmbar.jsonl", "mt_bench/human_majority_pairs.jsonl"):
        examples = list(read_examples(shared_data / name, need=("responses", "gold")))
        assert {len(example.responses) for example in examples} == {2}
    assert {example.gold for example in examples} == {(0,), (1,)}


def test_real_rows_round_trip(shared_data, tmp_path):
    """Our own form of a real file reads back as the same examples, with the same ids."""
    files = ["instructions/kto_en_demo.json", "xstest/xstest_prompts.csv", "instructions/biggen_bench_765.json.gz"]
    for name in files:
        examples = list(read_examples(shared_data / name))
        path = write(tmp_path / "own.jsonl", jsonl([example.to_json() for example in examples]))
        assert list(read_examples(path)) == examples
