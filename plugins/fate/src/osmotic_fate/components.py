# SPDX-License-Identifier: Apache-2.0
"""The FATE components `osmotic_pipeline` and `osmotic_component`: what FATE sees of osmotic.

FATE loads every registered component for every task of anybody, so this module imports FATE's own and nothing else. FATE
coerces parameters loosely and ignores those it does not know: the worker checks them strictly.
"""

from typing import Union

from fate.components.core import ARBITER, GUEST, HOST, LOCAL, Role, cpn

from osmotic_fate import __version__

KNOWN = {"provider": "osmotic", "version": __version__}


@cpn.component(roles=[GUEST, HOST, ARBITER], name="osmotic_pipeline", **KNOWN)
def osmotic_pipeline(
    ctx,  # noqa: ANN001
    role: Role,
    pipeline: cpn.parameter(type=Union[str, dict], optional=False, desc="an osmotic pipeline: its YAML, or a shipped name"),
    overrides: cpn.parameter(type=Union[list, dict], default=None, optional=True, desc='values by path: ["matrix.seed=[1]"]'),
    parties: cpn.parameter(type=dict, default=None, optional=True, desc='FATE parties by name: {"north": "guest:9999"}'),
    roles: cpn.parameter(type=dict, default=None, optional=True, desc='FATE roles by role: {"server": "arbiter"}'),
    outputs: cpn.parameter(type=dict, default=None, optional=True, desc="which tasks' outputs become FATE's, by party"),
    deadline: cpn.parameter(type=float, default=None, optional=True, desc="seconds without progress until the job ends"),
    appear: cpn.parameter(type=float, default=None, optional=True, desc="seconds until every party's task has appeared"),
    worker: cpn.parameter(type=str, default=None, optional=True, desc="the name of a worker that the site has"),
    data: cpn.data_directory_input(optional=True, desc="records for the pipeline"),
    output_data: cpn.data_directory_output(optional=True, desc="records, documents or metrics of a task"),
    output_model: cpn.model_directory_output(optional=True, desc="weights of a task"),
    report: cpn.json_model_output(optional=True, desc="this party's report and its extract of the ledger"),
) -> None:
    """This party's share of an osmotic pipeline: the arbiter is the server, guest and hosts are its clients by default."""
    from osmotic_fate.task import run

    given = {"pipeline": pipeline, "overrides": overrides, "parties": parties, "roles": roles, "outputs": outputs}
    given.update({"deadline": deadline, "appear": appear, "worker": worker})
    writers = {"output_data": output_data, "output_model": output_model, "report": report}
    run(ctx, role, "pipeline", given, {"data": data}, writers)


@cpn.component(roles=[GUEST, HOST, ARBITER, LOCAL], name="osmotic_component", **KNOWN)
def osmotic_component(
    ctx,  # noqa: ANN001
    role: Role,
    component: cpn.parameter(type=str, optional=False, desc="the name of an osmotic component"),
    config: cpn.parameter(type=dict, default=None, optional=True, desc="its configuration"),
    party: cpn.parameter(type=str, default=None, optional=True, desc="this party's name in the site's policy"),
    data_set: cpn.parameter(type=str, default=None, optional=True, desc="the data set of the policy that the input counts as"),
    models: cpn.parameter(type=dict, default=None, optional=True, desc="models by name"),
    outputs: cpn.parameter(type=dict, default=None, optional=True, desc="which of its outputs become FATE's, by artifact"),
    deadline: cpn.parameter(type=float, default=None, optional=True, desc="seconds without progress until the task ends"),
    worker: cpn.parameter(type=str, default=None, optional=True, desc="the name of a worker that the site has"),
    data: cpn.data_directory_input(optional=True, desc="its input records"),
    model: cpn.model_directory_input(optional=True, desc="its input weights"),
    output_data: cpn.data_directory_output(optional=True, desc="its records, documents or metrics"),
    output_model: cpn.model_directory_output(optional=True, desc="its weights"),
    report: cpn.json_model_output(optional=True, desc="what it did, and this party's extract of the ledger"),
) -> None:
    """One osmotic component at this party alone, between other FATE tasks."""
    from osmotic_fate.task import run

    given = {"component": component, "config": config, "party": party, "data": data_set, "models": models}
    given.update({"outputs": outputs, "deadline": deadline, "worker": worker})
    writers = {"output_data": output_data, "output_model": output_model, "report": report}
    run(ctx, role, "component", given, {"data": data, "model": model}, writers)
