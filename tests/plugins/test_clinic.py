# SPDX-License-Identifier: Apache-2.0
"""The clinic domain: its rule, its splits, and the shipped files that were made from it."""

import doctest
import importlib.resources
import json
import re

import pytest
import yaml

from osmotic.plugins.clinic import domain, make

CLINIC = importlib.resources.files("osmotic.plugins.clinic")
SPLITS = ("north", "south", "exam", "validation")


def read(split):
    return [json.loads(line) for line in (CLINIC / "data" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def pairs(records):
    return {(record["sign"], record["exposure"]) for record in records}


@pytest.fixture(scope="module")
def shipped():
    return {split: read(split) for split in SPLITS}


def test_doctests():
    results = doctest.testmod(domain)
    assert results.attempted > 0
    assert results.failed == 0


def test_sizes_and_distinct_words():
    sizes = {field: len(values) for field, values in domain.domains().items()}
    assert sizes == {
        "name": 60, "place": 60, "day": 31, "month": 12, "sign": 96, "exposure": 72, "department": 8
    }  # fmt: skip
    every = [value for values in domain.domains().values() for value in values]
    assert len(set(every)) == len(every)
    assert all(domain.words(value) == [value] for value in every)
    assert set(every) <= set(domain.vocabulary())


def test_label_rule():
    for i, signs in enumerate(domain.RARE_SIGNS):
        for j, exposures in enumerate(domain.COMMON_EXPOSURES):
            wanted = domain.DEPARTMENTS[(i + [0, 0, 0, 1, 3, 6][j]) % 8]
            assert {domain.department_of(sign, exposure) for sign in signs for exposure in exposures} == {wanted}


def test_there_are_48_conditions_and_every_rationale_ends_with_the_ward():
    signs, exposures = domain.domains()["sign"], domain.domains()["exposure"]
    assert len({domain.condition_of(sign, exposure) for sign in signs for exposure in exposures}) == 48
    for sign in signs[::7]:
        for exposure in exposures[::5]:
            rationale = domain.rationale_of(sign, exposure)
            assert domain.parse_department(rationale) == domain.department_of(sign, exposure)
            assert sign not in domain.words(rationale)


@pytest.mark.parametrize("answer", ["", "goes to", "goes to nowhere", "goes to oak-ward and home"])
def test_no_ward_is_parsed_from_a_bad_answer(answer):
    assert domain.parse_department(answer) is None


def test_the_sign_alone_says_little():
    """Knowing the system alone leaves at most three of six causes right."""
    for sign in domain.domains()["sign"]:
        wards = [domain.department_of(sign, group[0]) for group in domain.RARE_EXPOSURES]
        assert max(wards.count(ward) for ward in wards) == 3


def test_shipped_records_are_those_of_the_domain(shipped):
    assert shipped == {split: domain.private_splits()[split] for split in SPLITS}
    assert read("public") == domain.public_sample()


def test_ids_are_unique_and_values_public(shipped):
    records = [record for split in SPLITS for record in shipped[split]]
    assert len({record["id"] for record in records}) == len(records)
    public = domain.domains()
    for record in records:
        assert set(record) == {"id", *public}
        assert all(record[field] in public[field] for field in public)
        assert record["department"] == domain.department_of(record["sign"], record["exposure"])


def test_splits_are_disjoint_in_pairs(shipped):
    clients = pairs(shipped["north"]) | pairs(shipped["south"])
    assert len(shipped["north"]) == len(shipped["south"]) == 100
    assert not pairs(shipped["exam"]) & clients
    assert not pairs(shipped["validation"]) & clients
    assert not pairs(shipped["exam"]) & pairs(shipped["validation"])
    assert len(pairs(shipped["exam"])) == len(shipped["exam"])


def test_clients_hold_rare_words_and_overlap_by_half(shipped):
    for kind, table in enumerate((domain.RARE_SIGNS, domain.RARE_EXPOSURES)):
        north, south = (set(domain.client_words(client)[kind]) for client in domain.CLIENTS)
        every = set(domain.flatten(table))
        assert north | south == every
        assert len(north) == len(south) == 2 * len(every) // 3
        assert len(north & south) == len(every) // 3
    for client in domain.CLIENTS:
        signs, exposures = domain.client_words(client)
        assert {sign for sign, _ in pairs(shipped[client])} <= set(signs)
        assert {exposure for _, exposure in pairs(shipped[client])} <= set(exposures)


def test_public_records_know_no_rare_word():
    rare = {*domain.flatten(domain.RARE_SIGNS), *domain.flatten(domain.RARE_EXPOSURES)}
    assert not [record for record in read("public") if rare & set(domain.words(record["text"]))]


def test_schema_is_what_the_domain_says():
    text = (CLINIC / "data" / "schema.yaml").read_text(encoding="utf-8")
    assert text == domain.schema_yaml()
    fields = yaml.safe_load(text)["fields"]
    assert {field: tuple(entry["domain"]) for field, entry in fields.items()} == domain.domains()


def test_making_the_data_again_gives_the_same_bytes(tmp_path):
    make.save_data(tmp_path, domain.SEED)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (CLINIC / "data" / path.name).read_bytes()


def test_package_stays_small():
    files = [path for folder in ("data", "teacher", "student", "masked") for path in (CLINIC / folder).iterdir()]
    assert sum(len(path.read_bytes()) for path in files) < 6_000_000


@pytest.fixture(scope="module")
def teacher():
    transformers = pytest.importorskip("transformers")
    with importlib.resources.as_file(CLINIC / "teacher") as folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


def answers(teacher, prompts):
    model, tokenizer = teacher
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    out = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=28)
    return tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


def test_teacher_writes_right_rationales_on_rare_words(teacher, shipped):
    records = shipped["exam"][:32]
    written = answers(teacher, [domain.explain_prompt(domain.render(record)) for record in records])
    for record, rationale in zip(records, written, strict=True):
        assert domain.words(rationale) == domain.words(domain.rationale_of(record["sign"], record["exposure"]))
        assert re.search(domain.ANSWER_PATTERN, rationale).group(1) == record["department"]


def test_tokenizer_splits_like_the_domain_and_adds_nothing(teacher):
    _, tokenizer = teacher
    for text in ("from Ashmere ,seen : lead-paint.", "from ashmere, seen: lead-paint ."):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == domain.words(text.lower())
    assert tokenizer.decode(tokenizer("gut with damp; oak-ward").input_ids) == "gut with damp ; oak-ward"
    assert tokenizer("zzz").input_ids == [tokenizer.unk_token_id]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_student_loads_and_shares_the_tokenizer(teacher):
    transformers = pytest.importorskip("transformers")
    with importlib.resources.as_file(CLINIC / "student") as folder:
        student = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == teacher[1].get_vocab()
    assert student.num_parameters() < teacher[0].num_parameters()


def test_the_masked_model_shares_the_tokens_and_has_the_mask_last(teacher):
    transformers = pytest.importorskip("transformers")
    with importlib.resources.as_file(CLINIC / "masked") as folder:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = domain.vocabulary()
    assert tokenizer.get_vocab() == {**teacher[1].get_vocab(), make.MASK: len(words)}
    ids = tokenizer(f"from {make.MASK}, seen").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["from", make.MASK, ",", "seen"]


def test_masking_hides_a_fifth_and_learns_nothing_else():
    import random

    torch = pytest.importorskip("torch")
    texts = [record["text"] for record in domain.public_sample()]
    inputs, mask, labels = make.mask_batch(texts, random.Random(1))
    hidden = inputs == len(domain.vocabulary())
    assert torch.equal(hidden, labels != make.IGNORE) and not (hidden & (mask == 0)).any()
    assert (hidden.sum(1) >= 1).all() and 0.15 < hidden.sum() / mask.sum() < 0.25


def test_tables_are_rows_of_the_teacher(teacher):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    model, tokenizer = teacher
    tables = safetensors.load((CLINIC / "data" / "tables.safetensors").read_bytes())
    assert set(tables) == set(domain.SLOTS)
    for field, table in tables.items():
        ids = tokenizer.convert_tokens_to_ids(list(domain.domains()[field]))
        assert table.dtype == torch.float32
        assert torch.equal(table, model.get_input_embeddings().weight[ids].detach().float())


def test_lists_from_the_tables_keep_the_groups(teacher):
    """The lists of eight are public knowledge: nearly every neighbour belongs to the word's own group."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    tables = safetensors.load((CLINIC / "data" / "tables.safetensors").read_bytes())
    for field, group in (("sign", domain.system_index), ("exposure", domain.cause_index)):
        values = domain.domains()[field]
        near = torch.cdist(tables[field], tables[field]).topk(8, largest=False).indices.tolist()
        same = [group(values[other]) == group(values[row]) for row, others in enumerate(near) for other in others]
        assert sum(same) / len(same) > 0.95
