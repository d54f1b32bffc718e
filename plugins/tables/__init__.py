# SPDX-License-Identifier: Apache-2.0
"""Tables: the symbols of free text, their vectors, and the public rule that cuts text. All of it is public by declaration.

`mapped` maps vectors from files, `pieces` cuts text by a table's own tokenizer, `words` by the public rule; the other modules
are the table plugins, one each.
"""
