# SPDX-License-Identifier: Apache-2.0
"""The words of the handbook: what is done with which things at whose request, and the phrases of the replies.

All of them are public vocabulary. What is private to the three firms is which phrases, order of parts and slip word are
theirs, and which code was given to whom. No word is in two lists.
"""

from __future__ import annotations


def _of(text: str, mark: str | None = None) -> tuple[str, ...]:
    """The words of a text, or the phrases between marks, white space at their ends left out."""
    return tuple(part.strip() for part in text.split(mark))


THEMES = {
    name: _of(nouns)
    for name, nouns in {
        "linen": "towels sheets blankets pillows curtains cushions quilts napkins rugs robes aprons tablecloths",
        "tableware": "cups plates bowls jugs spoons forks trays glasses saucers teapots platters ladles",
        "tools": "hammers chisels saws pliers files planes clamps drills mallets spanners awls rasps",
        "timber": "planks beams pegs shelves frames panels posts rails battens doors shutters boards",
        "bread": "loaves rolls buns scones bagels crumpets muffins wafers rusks pretzels baps baguettes",
        "cakes": "tarts pies cakes biscuits eclairs puddings flans strudels turnovers sponges meringues brioches",
        "garden": "pots spades rakes hoes trellises barrows baskets sieves dibbers bulbs seedlings shrubs",
        "stationery": "ledgers envelopes folders stamps pencils labels notebooks rulers inkwells binders diaries cards",
    }.items()
}

# firm -> kind of job (the verb of its instructions) -> theme of its things
OWN_JOBS = {
    "inn": {"lend": "tableware", "air": "linen", "fold": "linen", "fetch": "garden"},
    "workshop": {"mend": "tools", "sand": "timber", "oil": "tools", "join": "timber"},
    "bakery": {"bake": "bread", "glaze": "cakes", "slice": "bread", "box": "cakes"},
}
PUBLIC_JOBS = {
    "laundry": {"wash": "linen", "hang": "linen", "dust": "stationery", "clean": "tableware"},
    "depot": {"pack": "tableware", "store": "timber", "ship": "timber", "stack": "tableware"},
    "office": {"order": "linen", "count": "tools", "list": "stationery", "check": "tools"},
    "market": {"sell": "cakes", "price": "bread", "weigh": "bread", "wrap": "bread"},
    "nursery": {"borrow": "garden", "return": "stationery", "move": "garden", "collect": "garden"},
    "yard": {"polish": "tableware", "sort": "tools", "paint": "timber", "deliver": "cakes"},
}

COUNTS = _of("two three four five six seven eight nine ten twelve")
LOOKS = _of("plain small large blue green red white old new heavy light round")
TIMES = _of("monday tuesday wednesday thursday friday saturday sunday noon dawn dusk midnight easter")
_HEADS = _of("hal win ash bram thorn kings hart whit stan lang red mar nor clay black holt")
_TAILS = _of("worth ford ley combe wick ham stead bury well field dale more ton gate brook")
NAMES = tuple(head + tail for head in _HEADS for tail in _TAILS)

OPENINGS = _of(
    """with pleasure|of course|right away|noted down|very well|all arranged|leave it|consider it|happily done|no trouble|
    most gladly|understood fully|as requested|straight off|agreed then|so be|yes indeed|be assured|wish granted|going ahead|
    quite so|at once|well noted|rely upon""",
    "|",
)
CLOSINGS = _of(
    """good day friend|ever your servant|mind the step|until next time|many warm regards|thank you kindly|come again soon|
    safe travels home|enjoy your stay|take great care|keep this safe|nothing further needed|ask for more|pay us later|
    best wishes always|we remain yours|please sign below|all included here|see you shortly|sleep very soundly|
    handle them gently|call when ready|kept behind counter|free of charge""",
    "|",
)
SLIPS = _of("docket ticket voucher receipt token badge chit pass entry permit tally marker")
CODES = _of(
    """otter falcon badger heron lynx marten osprey plover raven stoat swift teal weasel wren adder beaver bittern buzzard
    curlew dormouse eagle egret ermine ferret finch fox gannet goshawk grouse hare harrier hawk hedgehog ibex jackdaw jay
    kestrel kite lapwing lark linnet magpie merlin mink mole moth newt nightjar owl partridge petrel pike pintail polecat
    puffin quail rabbit rook salmon seal shrew siskin skua snipe sparrow starling stork swallow swan tern thrush toad trout
    vole wagtail warbler whale wolf woodcock yak"""
)
