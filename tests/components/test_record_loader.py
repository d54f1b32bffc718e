# SPDX-License-Identifier: Apache-2.0
"""The loader gives what the site binds under a name, and nothing else."""

import pytest

from osmotic import testing
from osmotic.components.record_loader import RecordLoader
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import ConfigError, RefusedError
from osmotic.schemas.records import FieldSpec, RecordSchema

DATA = (Records([{"id": "1", "text": "x"}]), RecordSchema(fields={"text": FieldSpec(text=True)}))


def context():
    return testing.FakeContext(datasets={"train": DATA})


def test_it_gives_the_bound_records():
    assert testing.run_component(RecordLoader, {"data": "train"}, {}, context())["records"] is DATA[0]


def test_an_unbound_name_is_refused():
    with pytest.raises(RefusedError, match="did you mean 'train'"):
        testing.run_component(RecordLoader, {"data": "trian"}, {}, context())


@pytest.mark.parametrize("config", [{}, {"data": ""}, {"data": 3}, {"data": "train", "path": "/etc/passwd"}])
def test_wrong_configurations_are_refused(config):
    with pytest.raises(ConfigError):
        testing.run_component(RecordLoader, config, {}, context())


def test_it_fits_the_contract():
    testing.check_component(RecordLoader, {"data": "train"}, {}, context)
    assert RecordLoader.outputs["records"].label == "source"
