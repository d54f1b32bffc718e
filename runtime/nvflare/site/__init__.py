# SPDX-License-Identifier: Apache-2.0
"""At a site: its folder, what arrives there as a job, the mailbox that answers the coordinator, what a person starts."""
