# SPDX-License-Identifier: Apache-2.0
"""The files of a deployment on several machines: what a kit says, what a site keeps beside it, what the server keeps.

None of them has a secret: keys lie in the kits' own folders. All are JSON, written by `osmotic site kits` and `site init`;
whoever edits one gets errors with their places.
"""

from typing import Annotated, Literal

from pydantic import Field

from osmotic.schemas.base import Config
from osmotic.schemas.pipeline import Name

Plugins = Annotated[tuple[str, ...], Field(strict=False)]


class KitFile(Config):
    """What a kit says about itself, in the kit."""

    osmotic_kit: Literal[1] = Field(description="Version of this document's format.")
    party: Name = Field(description="Which party this kit makes: the name in pipelines and in its certificate.")
    server: Name = Field(description="Which party the server is in pipelines.")
    host: str = Field(description="The machine that the site connects to.")
    port: int = Field(ge=1, le=65535)


class SiteFile(Config):
    """A site's own file. Paths are relative to the site's folder. No plan and no server can change it."""

    osmotic_site: Literal[1] = Field(description="Version of this document's format.")
    party: Name = Field(description="Which party of pipelines this site is; also the name in its certificate.")
    server: Name = Field(description="Which party the server is: a plan that gives it another name is refused.")
    policy: str = Field(min_length=1, description="File of the site's policy (osmotic_sites: 1), which has this party.")
    home: str = Field("home", min_length=1, description="Folder of stores and ledgers, one folder a pipeline in it.")
    state: str | None = Field(None, min_length=1, description="Folder of the ledgers; default: as the policy file says.")
    plugins: Plugins | None = Field(None, description="Plugins that are loaded; default: all that are installed.")
    tells: Literal["reasons", "codes"] = Field(
        "reasons",
        description="What the server hears of a refused plan: reasons that follow from plan and policy alone, or a code.",
    )


class ServerFile(Config):
    """What the server's machine keeps: where its kits lie, and who has one. Paths are relative to the file's folder."""

    osmotic_server: Literal[1] = Field(description="Version of this document's format.")
    party: Name = Field(description="Which party the server is in pipelines.")
    host: str
    port: int = Field(ge=1, le=65535)
    hosts: Annotated[tuple[str, ...], Field(strict=False)] = Field((), description="Further names of the server.")
    days: int = Field(360, ge=1, description="How long new certificates are valid.")
    server: str = Field(description="Folder of the server's own kit.")
    admin: str = Field(description="Folder of the coordinator's kit.")
    sites: Annotated[tuple[Name, ...], Field(strict=False)] = Field(description="Sites that have a kit.")
