"""The worlds that questions are asked about: tables, columns and values, one pool per split, nothing shared."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from amalgam.demo import domain_words
from amalgam.demo.invented import invented_word
from amalgam.demo.task_item import Split

MIXED_SHARE: Final = 0.75
"""Share of training items whose domain is mixed."""
INVENTED_SHARE: Final = 0.25
"""Share of a mixed domain's words that mean nothing."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A table with a naming column, one column of categories and two of integers, and a child table that refers to it.

    Attributes:
        table: Plural name. label: Column that names a row. category: Column of few values.
        values: At least four values of the category.
        first, second: Integer columns. low, high: Range of both, inclusive.
        child: Child table. key: Its column with the parent's ``id``. amount: Its integer column.
    """

    table: str
    label: str
    category: str
    values: tuple[str, ...]
    first: str
    second: str
    low: int
    high: int
    child: str
    key: str
    amount: str

    @property
    def entities(self) -> frozenset[str]:
        """Every name and value; ``id`` and the SQL keywords are grammar."""
        names = (self.table, self.label, self.category, self.first, self.second, self.child, self.key, self.amount)
        return frozenset(names + self.values)


def _domains(text: str) -> tuple[Domain, ...]:
    """Two lines a domain: its names and range between bars, then the values of its category."""
    lines = text.strip().splitlines()
    return tuple(_domain(names, values) for names, values in zip(lines[::2], lines[1::2], strict=True))


def _domain(names: str, values: str) -> Domain:
    """``table | label | category | first second | low high | child key amount``, and values between commas."""
    table, label, category, numbers, span, child = (part.strip() for part in names.split("|"))
    first, second = numbers.split()
    low, high = (int(bound) for bound in span.split())
    child_table, key, amount = child.split()
    pool = tuple(value.strip() for value in values.split(","))
    return Domain(table, label, category, pool, first, second, low, high, child_table, key, amount)


_TRAIN: Final = """
    books | title | genre | pages price | 5 900 | loans book_id days
        Crime, Poetry, History, Travel, Fantasy
    employees | name | department | salary age | 18 9000 | shifts employee_id hours
        Sales, Finance, Legal, Support, Marketing
    hotels | hotel_name | city | rooms stars | 2 700 | bookings hotel_id nights
        Madrid, Vienna, Porto, Athens, New York
    cars | model | brand | horsepower mileage | 40 90000 | repairs car_id cost
        Volvo, Fiat, Toyota, Ford, Alfa Romeo
    movies | film | director | runtime budget | 60 4000 | screenings movie_id tickets
        Nolan, Varda, Leone, Kubrick, Campion
    rivers | river | continent | length_km depth_m | 3 6000 | bridges river_id span
        Asia, Europe, Africa, South America, Oceania
    patients | patient | ward | weight_kg visits | 1 160 | prescriptions patient_id doses
        Surgery, Cardiology, Oncology, Neurology
    planets | planet | galaxy | moons radius | 1 7000 | probes planet_id signals
        Andromeda, Whirlpool, Sombrero, Pinwheel
    restaurants | restaurant | cuisine | seats tips | 4 400 | dishes restaurant_id calories
        Thai, Italian, Mexican, Indian, Greek
    computers | hostname | operating_system | memory_gb cores | 2 1024 | tickets_open computer_id minutes
        Linux, Windows, FreeBSD, Solaris
    songs | song | band | duration plays | 90 8000 | streams song_id listeners
        Queen, Abba, Muse, Blur, Pink Floyd
    gardens | garden | climate | trees area | 6 2000 | harvests garden_id baskets
        Tropical, Alpine, Desert, Coastal
    students | student_name | faculty | credits absences | 1 300 | exams student_id points
        Physics, Law, Medicine, Music, Philosophy
    flights | flight_code | destination | distance passengers | 50 9000 | meals flight_id portions
        Tokyo, Cairo, Lima, Oslo, Hong Kong
    phones | phone | maker | battery storage | 8 6000 | returns phone_id refund
        Nokia, Samsung, Huawei, Motorola
    museums | museum | country | paintings visitors | 10 9000 | tours museum_id guests
        Italy, France, Egypt, Peru, Japan
    farms | farm | region | cows acres | 5 1500 | deliveries farm_id liters
        North, South, East, West
    products | product | category | stock unit_price | 1 999 | orders product_id quantity
        Toys, Garden, Office, Kitchen, Sports
    teams | team | league | wins goals | 1 120 | matches team_id fouls
        Premier, Bundesliga, Serie A, Eredivisie
    ships | vessel | harbour | crew tonnage | 3 9000 | voyages ship_id containers
        Kiel, Genoa, Bergen, Dover
    dogs | dog | breed | height_cm puppies | 1 95 | walks dog_id steps
        Poodle, Beagle, Collie, Husky
    lakes | lake | province | volume altitude | 5 4500 | catches lake_id fish
        Ontario, Quebec, Alberta, Manitoba
    invoices | invoice_number | status | amount_due vat | 1 5000 | payments invoice_id paid
        Open, Closed, Overdue, Disputed
    cameras | camera | mount | megapixels shutter_count | 8 9000 | photos camera_id likes
        Canon, Nikon, Leica, Pentax
"""

_DEV: Final = """
    cheeses | cheese | milk | fat aging_weeks | 2 90 | tastings cheese_id tasters
        Goat, Sheep, Buffalo, Cow
    castles | castle | duchy | towers built | 1 1700 | sieges castle_id soldiers
        Bavaria, Savoy, Lorraine, Tuscany
    drones | drone | operator | range_m payload | 10 5000 | missions drone_id waypoints
        Police, Rescue, Survey, Army
    podcasts | show | language | episodes subscribers | 3 8000 | adverts podcast_id seconds
        Dutch, Polish, Welsh, Turkish
"""

_TEST: Final = """
    volcanoes | volcano | island | elevation eruptions | 2 4000 | quakes volcano_id tremors
        Java, Sicily, Hawaii, Luzon
    bakeries | bakery | district | ovens revenue | 1 8000 | cakes bakery_id slices
        Harlem, Soho, Chelsea, Old Town
    satellites | satellite | agency | orbit_km mass | 50 9000 | images satellite_id pixels
        Nasa, Esa, Jaxa, Roscosmos
    violins | violin | luthier | strings_replaced worth | 1 9000 | concerts violin_id applause
        Amati, Guarneri, Stradivari, Stainer
    libraries | library | borough | shelves members | 4 7000 | donations library_id volumes
        Camden, Queens, Brooklyn, Hackney
    turbines | turbine | wind_park | blades output | 3 6000 | inspections turbine_id faults
        Skagen, Borkum, Horns Rev, Baltic
    parrots | parrot | species | wingspan words | 1 140 | feedings parrot_id nuts
        Macaw, Kakapo, Lory, Amazon
    tenants | tenant | building | rent deposit | 20 5000 | complaints tenant_id severity
        Maple House, Oak Court, Elm Lodge, Pine Hall
"""

DOMAINS: Final[Mapping[Split, tuple[Domain, ...]]] = {
    "train": _domains(_TRAIN),
    "dev": _domains(_DEV),
    "test": _domains(_TEST),
}


_TABOO: Final = frozenset().union(*(domain.entities for split in ("dev", "test") for domain in DOMAINS[split]))


def draw_domain(split: Split, rng: Random) -> Domain:
    """A domain of ``split``: for training one of its own or, more often, one mixed from single words."""
    if split == "train" and rng.random() < MIXED_SHARE:
        return _mixed(rng)
    return rng.choice(DOMAINS[split])


def _mixed(rng: Random) -> Domain:
    """A domain of words that were drawn one by one; its sentences can be odd, which makes them hard to guess."""
    table, child = rng.sample(domain_words.TABLES, 2)
    first, second, amount = (_or_invented(word, rng) for word in rng.sample(domain_words.NUMBERS, 3))
    singular = table.removesuffix("s")
    label = singular if rng.random() < 0.5 else _or_invented(rng.choice(domain_words.LABELS), rng)
    values = (_or_invented(value.replace("_", " "), rng) for value in rng.sample(domain_words.VALUES, 4))
    low = rng.randint(1, 60)
    return Domain(
        table=table,
        label=label,
        category=_or_invented(rng.choice(domain_words.CATEGORIES), rng),
        values=tuple(values),
        first=first,
        second=second,
        low=low,
        high=low + rng.choice((60, 400, 3000, 9000)),
        child=child,
        key=f"{singular}_id",
        amount=amount,
    )


def _or_invented(word: str, rng: Random) -> str:
    """``word``, or now and then an invented one in its place."""
    if rng.random() >= INVENTED_SHARE:
        return word
    return invented_word(rng, _TABOO, capital=word[0].isupper())
