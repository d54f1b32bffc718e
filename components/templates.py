# SPDX-License-Identifier: Apache-2.0
"""Templates of components: prompts, labels and targets written by the user over a record's fields (Jinja2, sandboxed).

What a template may do is in `osmotic.plugins.sandbox`. Components compile in `run` and report bad slots in `check`, so that a
misspelt slot stops the plan, before any model is loaded.
"""

from osmotic.plugins.sandbox import Template, check_slots, compile_template, render, slots

__all__ = ["Template", "check_slots", "compile_template", "render", "slots"]
