# SPDX-License-Identifier: Apache-2.0
"""The commands of the command line, a file a group; each file has `register(app)`."""
