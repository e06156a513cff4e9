"""A click log that only attention between the two texts can learn: a click needs a word that both share.

Each text is 8 random words, so nothing in one text alone says anything about the click. A share of the rows with a
shared word, `NOISE`, is not clicked all the same. So a model that sees every shared word, and nothing else, has an AUC
of `BEST`: of all pairs of a click and another row, those whose other row shares a word, too, are a coin's throw.

    python -m tests.finetune.shared_words FOLDER      # train.jsonl, dev.jsonl and test.jsonl
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from finetune.data.row import ClickRow
from finetune.data.writing import write_rows

# Common words, each one token of BERT's uncased vocabulary.
_COMMON = """
ace acid actor aisle album alley ankle apple arena armor army arrow atlas aunt award baker balcony ballet band bank
barn basin basket bath battery beach bean bear bee bell bench berry bike bird blade blanket boat bomb bone book boot
bottle bowl box brain branch bread brick bridge brother brush bubble bucket bull bus butter button cabin cake camel
camera camp candle canyon captain card carpet castle cat cave chain chair chalk cheese chef cherry chest chicken
chief child chin church circle circus cliff cloak clock cloud club coach coal coast coat coffee coin collar comet
copper corn cotton couch cow crab cradle crane cream creek crew crown crystal cup curtain dairy dance daughter deck
deer desert desk diamond diary dish doctor dog doll dome donkey door dragon drawer dress drum duck dust eagle ear
earth egg elbow elephant engine envelope eye face factory farm father feather fence ferry field film finger fire
fish flag flame flood floor flower flute fog forest fork fox frame frog fruit garage garden gate ghost giant gift
glass glove goat gold grain grape grass guitar hall hammer hand harbor hat hawk head heart hill honey hook horse
hospital hotel house ice ink iron island ivory jacket jail jar jaw jet jewel judge juice jungle jury key king
kitchen kite knee knife lab ladder lake lamp lawn leaf leather leg lemon letter library lighthouse lion lip liver
lock map maple marble market mask meadow meat medal milk mill mirror monk monkey moon mother motor mountain mouse
mouth movie mud museum nail neck needle nest net night nose nurse oak ocean oil onion opera orange orchestra oven
owl ox palace palm paper park parrot path pearl pen pepper piano pie pig pillow pilot pine pipe planet plate pocket
poem pond pool port potato powder priest prince prison purse queen rabbit radio rail rain ranch rat ribbon rice
rifle ring river road robot rocket roof room root rope rose sail salad salt sand school sea seed shadow shark sheep
shell ship shirt shoe shop shoulder silk silver sister ski skin skirt sky smoke snake snow soap soldier song soup
spider spoon spring stable star statue steam steel stone storm stove street sugar suit sun sword table tail tailor
tank tea teacher temple tent thread throat throne thunder ticket tiger toe tomato tongue tooth towel tower toy train
tree truck trumpet tunnel turkey umbrella uncle valley van velvet village violin voice wagon wall water wave wax
wheel wheat whip whistle wind window wine wing winter wire wolf wood wool worm wrist yard zoo
"""
WORDS = _COMMON.split()
LENGTH = 8  # words of a text
CANDIDATES = 6  # of a group, which has one user text
SHARED = 0.5  # of the rows
NOISE = 0.1  # of those
BEST = 1 - SHARED * NOISE / (1 - SHARED * (1 - NOISE)) / 2
ROWS = {"train": 6_000, "dev": 1_500, "test": 1_500}


def shared_words(rows: int, seed: int) -> Iterator[ClickRow]:
    """Draw so many rows: the same ones for the same seed."""
    chance = random.Random(seed)
    for number in range(rows):
        if number % CANDIDATES == 0:
            user = chance.sample(WORDS, LENGTH)
        document = chance.sample([word for word in WORDS if word not in user], LENGTH)
        shares = chance.random() < SHARED
        if shares:
            document[chance.randrange(LENGTH)] = chance.choice(user)
        click = int(shares and chance.random() >= NOISE)
        yield ClickRow(f"{seed}-{number // CANDIDATES}", " ".join(user), " ".join(document), click, 1)


def write_shared_words(folder: Path, **rows: int) -> Path:
    """Write the three files, each with another seed, and `rows` of them where it says how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((ROWS | rows).items()):
        write_rows(folder / f"{name}.jsonl", shared_words(count, seed))
    return folder


if __name__ == "__main__":
    write_shared_words(Path(sys.argv[1]))
