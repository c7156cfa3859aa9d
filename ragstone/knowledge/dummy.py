"""The dummy source: a few passages with made-up vectors of any dimension, for trying a model out.

The reference's dummy is a small part of wiki_dpr with DPR's vectors. This one is written on the fly, equal each time,
and needs no encoder: its vectors are sums of random vectors of the passage's words. What is retrieved has nothing to do
with the question, so that answers show that a model works, and nothing of how well.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ragstone.index.vector_index import build_index
from ragstone.knowledge.manifest import Origin, write_manifest
from ragstone.knowledge.source import INDEX_NAME, PASSAGES_NAME
from ragstone.knowledge.store import PassageStore, PassageWriter
from ragstone.progress import progress_bar
from ragstone.types import FloatArray

PASSAGES = (
    ("Almond", "The almond tree blossoms before its leaves come. Its seed is eaten raw, roasted or ground to flour."),
    (
        "Anchor",
        "An anchor holds a ship to the sea bed. Its two arms dig into sand or mud when it is pulled.",
    ),
    ("Barometer", "A barometer measures the pressure of the air. A falling reading often comes before rain and wind."),
    ("Beaver", "Beavers build dams of branches and mud. The pond behind the dam hides the entrance of their lodge."),
    ("Bell", "A bell is cast in a mould of clay. Its lip is its thickest part, where the clapper strikes."),
    ("Bread", "Bread is baked from flour and water. Yeast or sour dough fills it with bubbles and makes it rise."),
    ("Bridge", "An arch bridge carries its load to the banks. A suspension bridge hangs from cables over two towers."),
    ("Candle", "A candle burns wax that its wick draws up. The wax must melt and turn to vapour before it burns."),
    (
        "Canal",
        "Locks lift boats from one level of a canal to the next. Gates close a chamber that fills or empties.",
    ),
    ("Chess", "Chess is played on sixty-four squares. A player wins when the other king cannot escape."),
    ("Cloud", "Clouds are drops of water or crystals of ice. They form where rising air becomes cold enough."),
    ("Compass", "The needle of a compass is a magnet. It points along the field of the earth, roughly to the north."),
    ("Copper", "Copper is a red metal that conducts electricity well. In the weather it slowly turns green."),
    ("Desert", "A desert has little rain. Nights are cold there, because dry air keeps no warmth of the day."),
    ("Eclipse", "The moon covers the sun in a solar eclipse. In a lunar eclipse the earth's shadow falls on the moon."),
    ("Falcon", "The peregrine falcon dives faster than any other bird flies. It hunts other birds in the air."),
    ("Glass", "Glass is melted from sand, soda and lime. It is blown, pressed or poured while it is soft."),
    (
        "Glacier",
        "A glacier is snow that became ice under its own weight. It flows downhill and carves its valley.",
    ),
    ("Honey", "Bees make honey of nectar. They fan it with their wings until little water is left in it."),
    ("Iron", "Iron is smelted from ore with coal. Steel is iron with a little carbon, and much harder."),
    ("Kite", "A kite flies because the wind presses on its slanted face. A tail keeps it from turning over."),
    ("Lighthouse", "A lighthouse warns ships of rocks. Its lens gathers the light of one lamp into a far beam."),
    ("Loom", "A loom holds threads apart so that another can pass between them. Thread by thread they become cloth."),
    ("Map", "A flat map cannot show the round earth as it is. It is wrong in areas, in angles or in distances."),
    ("Moon", "The moon goes round the earth in about a month. It always shows the earth the same side."),
    ("Olive", "Olives are too bitter to be eaten from the tree. They are kept in brine, or pressed for their oil."),
    ("Paper", "Paper is made of fibres of plants. They are soaked, spread on a sieve, pressed and dried."),
    ("Pendulum", "A pendulum's swing takes as long as its length says. So it made clocks keep time."),
    ("Piano", "A piano's keys throw hammers against strings. Dampers stop a string when its key is let go."),
    ("Rainbow", "A rainbow stands opposite the sun. Drops of rain bend each colour of light by another angle."),
    ("River", "A river carries sand and mud to the sea. Where it slows down, it lays them down as a delta."),
    ("Salt", "Salt comes from mines or from the sea. It keeps food by drawing the water out of it."),
    ("Silk", "Silk is the thread of a caterpillar's cocoon. One cocoon is a single thread, many hundred metres long."),
    ("Spider", "Spiders have eight legs and spin silk. Not all of them build webs; some hunt by leaping."),
    (
        "Tea",
        "Black and green tea are leaves of one plant. Green leaves are heated at once, black ones turn brown.",
    ),
    ("Tide", "The moon and the sun draw the sea. High water comes about twice a day, highest at new and full moon."),
    ("Volcano", "A volcano is where molten rock comes up. Thin lava runs far; thick lava piles up and may explode."),
    ("Whale", "Whales are mammals and breathe air. The largest of them live on the smallest animals of the sea."),
    ("Windmill", "A windmill turns wind into work. It grinds corn, saws timber or lifts water out of low land."),
    ("Yeast", "Yeast is a fungus of single cells. It turns sugar into alcohol and gas, in dough and in beer."),
)


def dummy_source(dimension: int) -> Path:
    """Write the dummy source with vectors of `dimension` dimensions; it is gone when the process ends."""
    with progress_bar("Dummy source") as bar:
        bar.print(
            f"note: searching a dummy source of {len(PASSAGES)} passages with made-up vectors (use_dummy_dataset), to "
            "try the model out; what it finds has nothing to do with the question."
        )
    return _written(dimension)


@cache
def _written(dimension: int) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ragstone-dummy-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_dummy_source(folder, dimension)


def write_dummy_source(folder: Path, dimension: int) -> Path:
    """Write the dummy source into `folder`, which is there and empty; equal each time, byte by byte."""
    titles, texts = zip(*PASSAGES, strict=True)
    vectors = np.stack([_vector(f"{title} {text}", dimension) for title, text in PASSAGES])
    with PassageWriter(folder / PASSAGES_NAME, dimension) as writer:
        writer.write(titles, texts, vectors)
    store = PassageStore(folder / PASSAGES_NAME)
    build_index(store.vector_chunks, len(store), dimension, "Flat", folder / INDEX_NAME)
    write_manifest(folder, Origin(len(PASSAGES), max(len(text.split(" ")) for text in texts)), store, "Flat", {})
    return folder


def _vector(text: str, dimension: int) -> FloatArray:
    """The normalised sum [D] of the random vectors of a text's words."""
    words = [word.strip(".,;").lower() for word in text.split()]
    seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8]) for word in words]
    total = np.sum([np.random.default_rng(seed).standard_normal(dimension) for seed in seeds], axis=0)
    return (total / np.linalg.norm(total)).astype(np.float32)
