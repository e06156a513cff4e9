"""The words of the sample click log: topics, templates and fillers, all written for this project.

A topic has two vocabularies with hardly a word in common: what users say, and what candidates say. Matching them takes
meaning, not string overlap. `{phrase}` is filled from a topic, the other slots from `SLOTS`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One subject: its name, which either side may add, what users write about it and what candidates write."""

    name: str
    user: tuple[str, ...]
    candidate: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of impression. Templates of `user` and `candidate` have one `{phrase}`; the first few are the shortest."""

    name: str
    topics: tuple[Topic, ...]
    user: tuple[str, ...]
    candidate: tuple[str, ...]
    candidate_filler: tuple[str, ...]
    appealing: tuple[str, ...]
    repelling: tuple[str, ...]


def _topic(name: str, user: str, candidate: str) -> Topic:
    return Topic(name, tuple(user.split(", ")), tuple(candidate.split(", ")))


SHOP_TOPICS = (
    _topic(
        "running",
        "sore knees after jogging, my first marathon, interval training, a faster 10k, blisters on long runs, "
        "a 5 km race",
        "cushioned road sneakers, breathable athletic socks, reflective sprint vest, stride-tracking foot "
        "pod, gel insoles",
    ),
    _topic(
        "coffee",
        "a proper espresso at home, bitter morning brew, freshly ground beans, a barista course, cold brew, latte art",
        "burr grinder, milk frother, gooseneck pour-over kettle, stovetop moka pot, arabica dark roast bag, "
        "drip cone filter",
    ),
    _topic(
        "baby",
        "a newborn who wakes at night, our six-month-old is teething, first-time parents, a toddler in the "
        "car, weaning",
        "rattle set, diaper caddy, infant stroller, bottle warmer, nursery monitor with camera, muslin "
        "swaddle, rear-facing seat",
    ),
    _topic(
        "camping",
        "sleeping outdoors in the woods, a week on the trail, hiking with heavy bags, a night under the "
        "stars, wild camping",
        "two-person tent, down quilt, ultralight backpack, gas burner, headlamp, insulated ground mat, folding hatchet",
    ),
    _topic(
        "home office",
        "working remotely all day, back pain from sitting, endless video calls, a tidy study, typing for hours",
        "ergonomic mesh chair, standing desk, monitor arm, split keyboard, noise-cancelling headset, webcam, "
        "lumbar cushion",
    ),
    _topic(
        "gaming",
        "playing shooters with friends, online tournaments, higher frame rates, a weekend of e-sports, "
        "streaming my matches",
        "mechanical RGB keyboard, 240 Hz display, console controller, graphics card, capture card, 26000 DPI mouse",
    ),
    _topic(
        "garden",
        "growing tomatoes on the balcony, slugs eating my lettuce, a lawn full of moss, planting tulips, "
        "herbs for the kitchen",
        "pruning shears, raised wooden bed, drip irrigation kit, compost bin, seedling tray, organic "
        "fertilizer, potting soil",
    ),
    _topic(
        "skin care",
        "dry cheeks in winter, acne on my forehead, dark circles, sensitive face, fewer wrinkles, sunburn on my nose",
        "hyaluronic serum, SPF 50 lotion, retinol night cream, niacinamide toner, clay mask, fragrance-free "
        "moisturizer",
    ),
)
NEWS_TOPICS = (
    _topic(
        "economy",
        "my savings and inflation, the cost of living, mortgage payments, whether to buy bonds, food prices",
        "central bank holds key rate, consumer index climbs, yields slip, economists see recession, Treasury "
        "cuts forecast",
    ),
    _topic(
        "football",
        "the football league, my club's new striker, the cup final, transfer rumours, penalty shoot-outs",
        "late header sinks rivals, coach sacked after derby, goalkeeper signs, midfielder injured, stoppage- "
        "time equaliser",
    ),
    _topic(
        "space",
        "rockets and planets, life on Mars, the night sky, astronauts, black holes and galaxies",
        "telescope spots distant nebula, lunar lander touches down, orbiter sends data, spacewalk completed, "
        "comet nears Sun",
    ),
    _topic(
        "climate",
        "global warming, melting glaciers, my carbon footprint, floods and droughts, renewable energy",
        "emissions reach record, offshore wind farm opens, heatwave strains grid, coral reefs bleach, methane "
        "pact signed",
    ),
    _topic(
        "election",
        "who wins the election, party politics, opinion polls, parliament debates, the campaign trail",
        "coalition talks stall, senator concedes, ballot recount ordered, minister resigns, turnout surges, "
        "voters head to booths",
    ),
    _topic(
        "health",
        "staying healthy, vaccines and viruses, sleep and heart disease, new medicines, hospital waiting times",
        "clinical trial shows promise, surgeons report breakthrough, flu cases double, regulator approves "
        "drug, nurses short",
    ),
    _topic(
        "technology",
        "big tech, smartphones, artificial intelligence, startups and gadgets, computer chips",
        "chatbot maker raises billions, antitrust suit hits search giant, foldable handset unveiled, "
        "semiconductor plant delayed",
    ),
    _topic(
        "cinema",
        "films and actors, what to watch tonight, festival winners, my favourite directors, television drama",
        "sequel tops box office, Oscar nominations announced, screenwriters end strike, thriller premieres, "
        "streaming series renewed",
    ),
)
SHOP = Domain(
    "shop",
    SHOP_TOPICS,
    (
        "help with {phrase}.",
        "gift idea: {phrase}.",
        "something for {phrase}.",
        "Right now it is all about {phrase}.",
        "I would love an answer to {phrase}.",
        "Most of my shopping this month has to do with {phrase}.",
        "What do you suggest for {phrase}?",
    ),
    (
        "{brand} {phrase}, {colour}.",
        "New: {phrase} by {brand}.",
        "{brand} {phrase}, pack of {number}.",
        "The {brand} {phrase} comes in {colour} and {colour}.",
        "Included is one {phrase} from the {brand} {number} line.",
        "Customers choose this {phrase} for daily use.",
    ),
    (
        "The parcel leaves our warehouse in {place} within {number} hours.",
        "Please keep the receipt for the {number} month warranty.",
        "Every item is packed in recycled cardboard without plastic.",
        "The colour {colour} may look slightly different on your screen.",
        "{brand} has been a family business in {place} for {number} years.",
        "Clean with a soft cloth and do not use bleach.",
        "The manual is printed in {number} languages.",
        "Our support team in {place} answers from {day} to {day}.",
        "Dimensions and weight are printed on the side of the box.",
        "Designed in {place} and tested by {number} volunteers.",
        "Also available in {colour} and in a limited {colour} edition.",
        "Store in a dry place away from direct light.",
    ),
    (
        "Best seller, rated 4.9 of 5.",
        "Half price until {day}.",
        "Award-winning quality, free delivery.",
        "Test winner, loved by thousands.",
    ),
    (
        "Out of stock until spring.",
        "Used item with scratches, no returns.",
        "Poor reviews, rated 1.8 of 5.",
        "Damaged box, parts are missing.",
    ),
)
NEWS = Domain(
    "news",
    NEWS_TOPICS,
    (
        "stories about {phrase}.",
        "all on {phrase}.",
        "mostly {phrase}, sometimes opinion.",
        "Every morning I read up on {phrase}.",
        "My friends and I keep talking about {phrase}.",
        "Please show me more about {phrase}.",
    ),
    (
        "{place}: {phrase}.",
        "{day} briefing: {phrase}.",
        "{phrase}, says {name}.",
        "According to {name} in {place}, {phrase}.",
        "On {day} it became known: {phrase}.",
        "Read the report of our correspondent {name}: {phrase}.",
    ),
    (
        "{name} contributed to this report from {place}.",
        "The details were first made public on {day}.",
        "A spokesperson in {place} did not want to comment.",
        "It is the third such message within {number} days.",
        "Observers had been waiting for it since {day}.",
        "More than {number} people followed the announcement on site.",
        "What happens next will be decided on {day} at the latest.",
        "{name} called it a turning point, others were more careful.",
        "Similar things were reported from {place} and {place}.",
        "A second statement is expected within {number} hours.",
        "The reactions in {place} were mixed.",
        "We will update this page as soon as there is more.",
    ),
    (
        "Exclusive, with photos and video.",
        "Explained in {number} simple charts.",
        "Breaking: live updates.",
        "The most read article of the week.",
    ),
    (
        "Sponsored advertisement by a partner.",
        "Archive copy, outdated.",
        "Subscribers only, preview ends here.",
        "Automatic translation, may contain errors.",
    ),
)
DOMAINS = (SHOP, NEWS)
USER_FILLER = (
    "I live in {place} with {name} and two neighbours.",
    "On {day} I usually have a little more time.",
    "My cousin {name} told me about this page.",
    "I do not mind if it takes {number} days.",
    "Last year was busy and I forgot about most things.",
    "We moved from {place} to {place} not long ago.",
    "Thanks in advance and greetings from {place}.",
    "I have asked {name} already but got no reply.",
    "It does not need to be anything special.",
    "There are {number} of us and everybody wants something else.",
    "Maybe I will decide on {day}, maybe later.",
    "I have been a member for {number} years.",
)
SLOTS = {
    "brand": ("Alvero", "Nordwick", "Tamsin", "Quellmark", "Brixo", "Halden", "Mirova", "Opaline", "Zephyr", "Kestrel"),
    "colour": ("black", "olive", "navy", "sand", "white", "grey", "teal", "copper"),
    "number": ("2", "3", "6", "12", "24", "30", "48", "90"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "place": ("Porto", "Leeds", "Bergen", "Ghent", "Turin", "Malmo", "Split", "Graz", "Bilbao", "Cork", "Tampere"),
    "name": ("Mara Lind", "Jonas Field", "Aiko Brandt", "Peter Osei", "Lucia Ferro", "Sam Whitlock", "Noor Haddad"),
}
