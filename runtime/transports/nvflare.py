# SPDX-License-Identifier: Apache-2.0
"""The transport over NVFlare, at the coordinator: its own party in process, every other one through the engine.

The engine carries sealed messages and never looks inside; the membrane of each site has decided what is in them. A site that
is restarted, frozen or cut off is waited for as long as its patience lasts, and asked again: whatever it had finished it finds
finished. Nothing here knows NVFlare itself: any `Carrier` will do.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from osmotic.runtime.nvflare.server.credential import Credential
from osmotic.runtime.nvflare.server.line import Line
from osmotic.runtime.nvflare.server.post import Post
from osmotic.runtime.nvflare.server.renewal import Renewal
from osmotic.runtime.nvflare.wire import Carrier, Header
from osmotic.runtime.party.service import Service
from osmotic.runtime.transports.base import Reply, Watch
from osmotic.runtime.transports.remote import Remote
from osmotic.schemas.errors import OsmoticError, PeerError

PATIENCE = 120.0  # seconds without progress after which a site is lost, where nothing else is said
QUIET = 15.0  # seconds after which an idle site hears something
GONE = 40.0  # seconds of silence after which a site counts as away
LOOK = 5.0  # seconds between two looks at who is quiet
AT_ONCE = 16  # sites


class Nvflare(Remote):
    """parties: everybody else. home: the coordinator's folder, with what its sites know it by. renew: asks the engine for new
    processes of sites that are away. patience_of: seconds by party, where they are not `patience`; may be changed at any time.
    """

    fragments = True
    tells = ("plan",)

    def __init__(
        self, own: str, service: Service, parties: Iterable[str], carrier: Carrier, home: Path, watch: Watch,
        patience: float = PATIENCE, renew: Callable[[list[str]], object] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(own, service, watch)
        self.patience, self.patience_of = patience, dict[str, float]()
        credential, renewal = Credential(home), Renewal(renew)
        self.posts = {
            party: Post(Line(party, carrier, credential, renewal, lambda party=party: self._patience(party)))  # type: ignore[misc]
            for party in parties
            if party != own
        }
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._beats, daemon=True, name="beat")
        self._beat.start()

    def channels(self) -> Mapping[str, Post]:
        """A post a site."""
        return self.posts

    @property
    def facts(self) -> dict[str, Header]:
        """What each site told of itself when it was greeted."""
        return {party: post.line.facts for party, post in self.posts.items() if post.line.greeted}

    def greet(self, parties: Iterable[str] | None = None) -> dict[str, OsmoticError]:
        """Begin a session with sites, all at once; those that could not be greeted, and why. A request does it by itself."""
        asked = [party for party in (self.posts if parties is None else parties) if party in self.posts]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(asked, pool.map(self._greeted, asked), strict=True))
        return {party: error for party, error in found.items() if error is not None}

    def here(self, party: str) -> bool:
        """Whether a party can be asked: it has answered lately, and is not at work on what it was given up for."""
        post = self.posts.get(party)
        return party == self.own or (post is not None and not post.away and time.monotonic() - post.line.heard < GONE)

    def request(self, party: str, header: Header, blob: bytes = b"") -> Reply:
        """Ask a party; one that is lost is looked for from then on."""
        post = self.posts.get(party)
        try:
            reply = super().request(party, header, blob)
        except PeerError:
            if post is not None:
                post.away = True
            raise
        if post is not None:
            post.away = False
        return reply

    def close(self) -> None:
        """Let go of every site; what is at work there is finished and kept."""
        self._over.set()
        if self._beat is not threading.current_thread():
            self._beat.join(1.0)
        lines = [post.line for post in self.posts.values()]
        if lines:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(Line.bye, lines))
        for line in lines:
            line.closed = True
        self.posts = {}

    def _patience(self, party: str) -> float:
        return self.patience_of.get(party, self.patience)

    def _greeted(self, party: str) -> OsmoticError | None:
        post = self.posts[party]
        try:
            with post.lock:
                if not post.line.session:
                    post.greet()
        except OsmoticError as error:
            return error
        return None

    def _beats(self) -> None:
        """Sites that nobody asks anything hear a word now and then: else they would end. One that is away is looked for."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while not self._over.wait(LOOK):
                quiet = [post for post in list(self.posts.values()) if self._quiet(post)]
                list(pool.map(self._ping, quiet))

    def _quiet(self, post: Post) -> bool:
        idle = post.away or time.monotonic() - post.line.heard > QUIET
        return bool(post.line.greeted) and not post.lock.locked() and idle

    def _ping(self, post: Post) -> None:
        try:
            post.away = not post.line.ping() and post.away
        except OsmoticError:
            return  # the next request hears of it
