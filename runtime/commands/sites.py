# SPDX-License-Identifier: Apache-2.0
"""Past one machine: kits, a site's folder, the server's run, a site at work, who is there."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from osmotic.runtime.commands.options import (
    BindOption,
    HomeOption,
    JsonOption,
    SetOption,
    SitesOption,
    options,
    shipped,
)

SERVER, SITE = Path("osmotic-server"), Path("osmotic-site")
KitArgument = Annotated[Path, typer.Argument(help="The .zip file that the server's operator sent, or its unpacked folder.")]
ServerOption = Annotated[Path, typer.Option("--folder", help="The server's folder, of 'osmotic site kits'.")]
SiteOption = Annotated[Path, typer.Option("--folder", help="The site's folder.")]
ShaOption = Annotated[str | None, typer.Option("--sha256", help="What the kit's SHA-256 must be, as told at the server.")]
WaitOption = Annotated[str, typer.Option("--wait", help="How long to wait for sites: 60s, 5min, 2h.")]

site = typer.Typer(
    name="site", no_args_is_help=True, rich_markup_mode=None, help="Set up machines for runs over NVFlare: kits and sites."
)


@site.command()
def kits(
    host: Annotated[str | None, typer.Argument(help="Name or address that sites connect to; may be left out later.")] = None,
    sites: Annotated[list[str] | None, typer.Option("--sites", help="Parties of pipelines that get a kit: a,b,c.")] = None,
    server: Annotated[str | None, typer.Option("--server", help="Which party of pipelines this machine is.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The server's folder, made here.")] = SERVER,
    port: Annotated[int | None, typer.Option("--port", help="Where the server listens; default 8002.")] = None,
    alias: Annotated[list[str] | None, typer.Option("--alias", help="Another name of the same machine; repeat.")] = None,
    days: Annotated[int | None, typer.Option("--days", help="How long new certificates are valid; default 360.")] = None,
    renew: Annotated[list[str] | None, typer.Option("--renew", help="Sites, server, admin: a new certificate.")] = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """At the server: make a kit (certificate and key) for every site, and for the server. Again: for further ones."""
    from osmotic.runtime.nvflare.server.deployment import make_kits

    told, made = make_kits(
        out, host, _names(sites), server=server, port=port, hosts=alias or (), days=days, renew=_names(renew)
    )
    if json_:
        archives = {one.name: {"kit": str(one.archive), "sha256": one.sha256, "until": one.until.isoformat()} for one in made}
        print(json.dumps({"folder": str(out), "server": told.party, "host": told.host, "port": told.port, "kits": archives}))
        return
    print(f"{told.party}: the server, {told.host}:{told.port}, in {out}")
    for one in made:
        print(f"{one.name}: {one.archive}, valid until {one.until:%Y-%m-%d}\n    sha256 {one.sha256}")
    if made:
        print("A kit has the site's private key: send each over a safe channel to its site alone, then delete it here.")
        print("There: osmotic site init NAME.zip --policy FILE, and: osmotic join")


@site.command()
def init(
    kit: KitArgument,
    policy: Annotated[Path, typer.Option("--policy", help="The site's policy: a file of site policies with this party in it.")],
    folder: SiteOption = SITE,
    home: Annotated[str | None, typer.Option("--home", help="Folder of stores and ledgers; default: here.")] = None,
    plugin: Annotated[list[str] | None, typer.Option("--plugin", help="Load this plugin and no others; repeat.")] = None,
    tells: Annotated[str, typer.Option("--tells", help="What the server hears of a refused plan: reasons, codes.")] = "reasons",
    sha256: ShaOption = None, json_: JsonOption = False,
) -> None:  # fmt: skip
    """At a site: unpack a kit, narrow what the engine may do, and bind the policy. Nothing is written over."""
    from osmotic.runtime.nvflare.site.founding import found

    plugins = None if plugin is None else tuple(plugin)
    made = found(kit, policy, folder, home=home, plugins=plugins, tells=_tells(tells), sha256=sha256)
    _show(made, json_, f"osmotic join{'' if folder == SITE else f' --folder {folder}'}")


@site.command("renew")
def renew_(kit: KitArgument, folder: SiteOption = SITE, sha256: ShaOption = None, json_: JsonOption = False) -> None:
    """At a site: a new certificate and key out of a new kit. Policy, settings and ledgers stay; start 'osmotic join' again."""
    from osmotic.runtime.nvflare.site.founding import renew

    _show(renew(kit, folder, sha256), json_, "start 'osmotic join' again")


@site.command()
def check(folder: SiteOption = SITE, json_: JsonOption = False) -> None:
    """At a site: whether it is in order: certificate, the engine's settings, policy, data, plugins, disk. Starts nothing."""
    from osmotic.runtime.nvflare.site.founding import look

    _show(look(folder), json_, "osmotic join")


@site.command("harden")
def harden_(folder: SiteOption = SITE, json_: JsonOption = False) -> None:
    """At a site: write the engine's settings again, as this version of osmotic wants them: after an upgrade, or an accident."""
    from osmotic.runtime.nvflare.site.founding import rewrite

    _show(rewrite(folder), json_, "start 'osmotic join' again")


def serve(
    pipeline: Annotated[
        str | None, typer.Argument(help="Path or name of a pipeline; none: hold the server up.", autocompletion=shipped)
    ] = None,
    folder: ServerOption = SERVER, set_: SetOption = None, sites: SitesOption = None, bind: BindOption = None,
    home: HomeOption = None, wait: WaitOption = "60s",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the engine's server running afterwards.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False, json_: JsonOption = False,
) -> None:  # fmt: skip
    """At the server: run a pipeline over the sites. Each says yes or no to the plan by its own policy before anything runs."""
    from osmotic.runtime.nvflare.server.looking import hold
    from osmotic.runtime.nvflare.server.serving import serve as run

    with _ended_by_signal():
        if pipeline is None:
            hold(folder, _tell)
            return
        from osmotic.runtime import api
        from osmotic.runtime.screen.console import Console

        watcher = api.Quiet() if quiet else Console(sys.stderr)
        given = options(set_, sites, bind, home)
        summary = run(pipeline, folder, **given, wait=seconds(wait), keep=keep, watcher=watcher, tell=_tell)
    if json_:
        print(json.dumps(summary, sort_keys=True))
    else:
        from osmotic.runtime.results.result_text import result_text

        print(result_text(summary))


def join(
    folder: SiteOption = SITE,
    once: Annotated[bool, typer.Option("--once", help="End after the first run here.")] = False,
) -> None:  # fmt: skip
    """At a site: take part. Stays in the foreground, connects again by itself; Ctrl-C ends it and all that it started."""
    from osmotic.runtime.nvflare.site.joining import join as take_part

    with _ended_by_signal():
        take_part(folder, _tell, once)


def list_sites(
    folder: ServerOption = SERVER,
    wait: Annotated[str | None, typer.Option("--wait", help="Start the server if need be and wait for all sites: 60s.")] = None,
    json_: JsonOption = False,
) -> None:
    """At the server: who is there, with which versions, policy and certificate, and when it was last seen."""
    from osmotic.runtime.nvflare.server.listing import listed_text
    from osmotic.runtime.nvflare.server.looking import look_around

    with _ended_by_signal():
        found = look_around(folder, None if wait is None else seconds(wait), _tell)
    print(json.dumps(found, sort_keys=True) if json_ else listed_text(found, time.time()))


def seconds(text: str) -> float:
    """'60', '60s', '5min', '2h' in seconds; raises ConfigError."""
    import re

    from osmotic.schemas.errors import ConfigError, Problem

    units = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if match is None or match[2] not in units:
        raise ConfigError(Problem(f"{text!r} is no span of time", path="--wait", fix="write it as 60s, 5min or 2h"))
    return float(match[1]) * units[match[2]]


def _tells(text: str) -> str:
    from osmotic.schemas.errors import ConfigError, Problem
    from osmotic.schemas.source import did_you_mean

    if text not in ("reasons", "codes"):
        raise ConfigError(Problem(f"{text!r} cannot be told", path="--tells", fix=did_you_mean(text, ("reasons", "codes"))))
    return text


def _names(values: list[str] | None) -> list[str]:
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def _tell(line: str) -> None:
    from osmotic.schemas.terminal import harmless

    print(f"{time.strftime('%H:%M:%S')} {harmless(line)}", file=sys.stderr, flush=True)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """A service manager's SIGTERM ends as Ctrl-C does: what was started is ended too."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(made: Any, json_: bool, then: str) -> None:
    from osmotic.runtime.nvflare.site.founding import shown, site_text

    print(json.dumps(shown(made), sort_keys=True) if json_ else f"{site_text(made)}\n\nnext: {then}")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(site)
    for command in (serve, join):
        app.command()(command)
    app.command("sites")(list_sites)
