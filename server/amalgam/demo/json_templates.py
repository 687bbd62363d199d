"""What structuring questions ask: one row a kind of text, with the shape of its JSON and its wordings per split.

A shape maps key concepts to slots, to nested shapes, or to a list of one shape. In wordings ``{slot}`` is a value;
``<slot:yes text|no text>`` says a boolean, or, where the yes text holds ``{slot}``, a value that may be null.
Slots are named for their pool; a digit behind the name tells two of a kind apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from amalgam.demo.wordings import Wordings, wordings

Shape = Mapping[str, "str | Shape | list[Shape]"]


@dataclass(frozen=True, slots=True)
class JsonTemplate:
    """A kind of text: the shape of its JSON, and its wordings per split."""

    name: str
    shape: Shape
    wordings: Wordings


def _row(name: str, shape: Shape, train: str, dev: str, test: str) -> JsonTemplate:
    """A template whose wordings stand on one line each."""
    return JsonTemplate(name, shape, wordings(train, dev, test))


JSON_TEMPLATES: Final[tuple[JsonTemplate, ...]] = (
    _row(
        "order",
        {"buyer": {"name": "person", "city": "city"}, "product": "thing", "quantity": "count", "price": "money"},
        """{person} from {city} ordered {count} {thing} at ${money} each.
        {count} {thing} were bought by {person} of {city} for ${money} apiece.
        We sold {count} {thing} to {person}, who lives in {city}, at a price of ${money}.
        New order: {person}, {city}, {count} {thing}, ${money} per piece.""",
        "{person} in {city} wants {count} {thing} and pays ${money} for each.",
        """{person}, who comes from {city}, bought {count} {thing} for ${money} each.
        An order of {count} {thing} at ${money} each came from {person} in {city}.""",
    ),
    _row(
        "basket",
        {"buyer": "person", "lines": [{"product": "thing", "quantity": "count"}], "paid": "flag"},
        """{person} bought {lines}, <flag:and has paid|and has not paid>.
        Basket of {person}: {lines}. <flag:Paid|Not paid yet>.
        We packed {lines} for {person}, <flag:already paid|still unpaid>.
        {lines} go to {person}; the bill is <flag:paid|open>.""",
        "{person} took {lines}, payment <flag:done|missing>.",
        """{person} ordered {lines} and <flag:has paid already|has not paid yet>.
        The basket of {person} holds {lines}, <flag:paid|not paid>.""",
    ),
    _row(
        "booking",
        {"guest": "person", "date": "date", "nights": "count", "breakfast": "flag"},
        """{person} arrives on {date} for {count} nights, <flag:with breakfast|without breakfast>.
        Please book {count} nights from {date} for {person}, <flag:breakfast included|no breakfast>.
        A room for {person}: {count} nights, starting {date}, <flag:with|without> breakfast.
        {person} stays {count} nights from {date} and <flag:wants breakfast|wants no breakfast>.""",
        "Room from {date}, {count} nights, {person}, breakfast: <flag:yes|no>.",
        """{person} booked {count} nights from {date} <flag:with breakfast|without breakfast>.
        From {date} on {person} stays for {count} nights, <flag:breakfast included|no breakfast>.""",
    ),
    _row(
        "contact",
        {"contact": {"name": "person", "email": "email"}, "company": "company"},
        """{person} can be reached at {email}<company:, works at {company}|, no company given>.
        Write to {person} under {email}. Company: <company:{company}|none>.
        The address of {person}<company: of {company}| (no company)> is {email}.
        {email} belongs to {person}, <company:who works for {company}|without a company>.""",
        "{person} uses {email} and <company:is with {company}|has no firm>.",
        """{person} has the address {email}<company: and works for {company}| and no company>.
        Reach {person} at {email}; company: <company:{company}|none given>.""",
    ),
    _row(
        "talk",
        {"topic": "word", "date": "date", "city": "city", "speakers": "people"},
        """A talk on {word} takes place in {city} on {date} with {people}.
        {people} speak about {word} in {city} on {date}.
        On {date}, {city} hosts an evening on {word} with {people}.
        Talk: {word}. Speakers: {people}. Where: {city}. When: {date}.""",
        "{city}, {date}: {people} present {word}.",
        """On {date} {people} talk about {word} in {city}.
        In {city} there is a talk about {word} on {date}, given by {people}.""",
    ),
    _row(
        "sensor",
        {"device": "code", "readings": "numbers", "alarm": "flag"},
        """Sensor {code} measured {numbers}; alarm <flag:on|off>.
        The readings of {code} were {numbers}, <flag:with an alarm|without an alarm>.
        {code} reports {numbers} and <flag:raised an alarm|raised no alarm>.
        Device {code}: {numbers}. Alarm: <flag:yes|no>.""",
        "{code} shows {numbers}, alarm: <flag:true|false>.",
        """Device {code} measured {numbers} and the alarm is <flag:on|off>.
        The values of {code} are {numbers}, <flag:with alarm|no alarm>.""",
    ),
    _row(
        "job",
        {"role": "role", "city": "city", "salary": "large", "remote": "flag", "skills": "words"},
        """A {role} is wanted in {city} for {large} a year, <flag:remote possible|not remote>. Skills: {words}.
        {city}: {role} with {words}, pays {large}, <flag:remote work allowed|on site only>.
        We look for a {role} in {city} who knows {words}. Salary {large}, <flag:remote|no remote work>.
        Job for a {role}: {large} per year in {city}, <flag:also from home|not from home>; needs {words}.""",
        "{role}, {city}, {large}, remote: <flag:yes|no>, asks for {words}.",
        """We need a {role} in {city} with {words}, {large} a year, <flag:remote allowed|not remote>.
        Wanted in {city}: a {role} for {large} per year, <flag:remote possible|no remote>. Skills: {words}.""",
    ),
    _row(
        "animal",
        {"pet": "pet", "species": "species", "age": "count", "owner": {"name": "person", "city": "city"}},
        """{pet} is a {species} of {count} years and belongs to {person} from {city}.
        {person} in {city} owns {pet}, a {species} aged {count}.
        The {species} {pet}, {count} years old, lives with {person} in {city}.
        Patient {pet}: {species}, age {count}, owner {person}, {city}.""",
        "{pet} ({species}, {count}) is kept by {person} of {city}.",
        """{person} from {city} has a {species} named {pet}, {count} years old.
        {pet}, a {species} aged {count}, belongs to {person} in {city}.""",
    ),
    _row(
        "recipe",
        {"dish": "dish", "minutes": "count", "ingredients": "foods", "vegan": "flag"},
        """For {dish} you need {foods} and {count} minutes; it is <flag:vegan|not vegan>.
        {dish} is made of {foods} in {count} minutes, <flag:vegan|not vegan>.
        Cook {foods} for {count} minutes to get <flag:vegan|non-vegan> {dish}.
        Recipe: {dish}. Takes {count} minutes. Use {foods}. Vegan: <flag:yes|no>.""",
        "{dish} needs {count} minutes, {foods}; vegans: <flag:yes|no>.",
        """To make {dish} take {foods} and {count} minutes. It is <flag:vegan|not vegan>.
        {dish} takes {count} minutes with {foods} and is <flag:vegan|not vegan>.""",
    ),
    _row(
        "match",
        {"home": {"team": "team", "goals": "small"}, "away": {"team": "team2", "goals": "small2"}},
        """The {team} met the {team2} at home, {small} to {small2}.
        At home the {team} hosted the {team2}; it ended {small} to {small2}.
        Home side {team} scored {small}, the visiting {team2} scored {small2}.
        {team} {small}, {team2} {small2}, played at the home of the {team}.""",
        "{team} at home against {team2}, {small} to {small2}.",
        """At home the {team} played the {team2}, {small} to {small2}.
        The {team} hosted the {team2} and it was {small} to {small2}.""",
    ),
    _row(
        "parcel",
        {"parcel": "code", "weight": "money", "from": "city", "to": "city2", "fragile": "flag"},
        """Parcel {code} of {money} kg goes from {city} to {city2}, <flag:fragile|not fragile>.
        {code} weighs {money} kg and travels from {city} to {city2}; <flag:handle with care, fragile|not fragile>.
        From {city} to {city2}: <flag:fragile|ordinary> parcel {code}, {money} kg.
        We ship {code} ({money} kg) to {city2} from {city}. Fragile: <flag:yes|no>.""",
        "{code}, {money} kg, leaves {city} for {city2}, breakable: <flag:yes|no>.",
        """The parcel {code} weighs {money} kg, goes from {city} to {city2} and is <flag:fragile|not fragile>.
        From {city} we send {code} with {money} kg to {city2}, <flag:fragile|not fragile>.""",
    ),
    _row(
        "review",
        {"product": "thing", "stars": "small", "author": "person", "tags": "words"},
        """<person:{person}|Nobody> gave the {thing} {small} stars. Tags: {words}.
        {small} stars for the {thing}<person:, says {person}|, no name given>, tagged {words}.
        The {thing} got {small} stars from <person:{person}|an unnamed person> under {words}.
        Review of {thing}: {small} stars, tags {words}, author <person:{person}|unknown>.""",
        "{thing}: {small} stars, {words}, by <person:{person}|no one>.",
        """The {thing} got {small} stars from <person:{person}|an unknown author>, tagged {words}.
        Review by <person:{person}|nobody>: {small} stars for the {thing}. Tags: {words}.""",
    ),
    _row(
        "invoice",
        {"invoice": "code", "company": "company", "total": "money", "paid": "flag"},
        """Invoice {code} from {company} over ${money} is <flag:paid|not paid>.
        {company} bills ${money} with {code}, <flag:already paid|still open>.
        Bill {code}: ${money} to {company}. Paid: <flag:yes|no>.
        We owe {company} ${money} for {code}; it is <flag:settled|unsettled>.""",
        "{code}, {company}, ${money}, paid: <flag:yes|no>.",
        """{company} sent invoice {code} over ${money}, <flag:already paid|not paid>.
        The invoice {code} of {company} for ${money} is <flag:paid|not paid>.""",
    ),
    _row(
        "train",
        {"from": "city", "to": "city2", "stops": "cities", "minutes": "count"},
        """The train from {city} to {city2} stops in {cities} and takes {count} minutes.
        From {city} via {cities} to {city2} it is {count} minutes.
        {count} minutes by train: {city} to {city2}, stopping at {cities}.
        Train {city} to {city2}, via {cities}, {count} minutes.""",
        "{city} to {city2} through {cities}: {count} minutes.",
        """It takes {count} minutes from {city} to {city2} with stops in {cities}.
        The train goes from {city} via {cities} to {city2} in {count} minutes.""",
    ),
    _row(
        "stock",
        {"warehouse": "city", "lines": [{"product": "thing", "quantity": "count"}]},
        """The store in {city} holds {lines}.
        In {city} there are {lines}.
        Stock at {city}: {lines}.
        {lines} are kept in {city}.""",
        "{city} has {lines} left.",
        """The warehouse in {city} has {lines}.
        There are {lines} in the {city} warehouse.""",
    ),
    _row(
        "weather",
        {"city": "city", "date": "date", "temperature": "signed", "rain": "flag"},
        """On {date} it is {signed} degrees in {city}, <flag:with rain|without rain>.
        {city} expects {signed} degrees and <flag:rain|no rain> on {date}.
        Weather for {city}, {date}: {signed} degrees, <flag:rainy|dry>.
        {signed} degrees in {city} on {date}. Rain: <flag:yes|no>.""",
        "{city}: {signed} degrees, {date}, rain: <flag:true|false>.",
        """In {city} it is {signed} degrees on {date} <flag:with rain|without rain>.
        {city} has {signed} degrees on {date} and <flag:rain|no rain>.""",
    ),
)
