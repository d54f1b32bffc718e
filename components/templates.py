# SPDX-License-Identifier: Apache-2.0
"""Templates of components: prompts, labels and targets written by the user over a record's fields (Jinja2, sandboxed).

What a template may do is in `osmotic.plugins.sandbox`: text, slots, ``~`` and filters that cannot fail. It may not branch on a
record, since what fails or not would tell the pipeline's author about it. Components compile in `run` and report bad templates
and slots in `check`, so that a mistake stops the plan, before any model is loaded.
"""

from osmotic.plugins.sandbox import Template, check_slots, compile_template, render, slots

__all__ = ["Template", "check_slots", "compile_template", "render", "slots"]
