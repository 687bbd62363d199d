"""The values and the key names that structuring questions use: one pool per split, nothing shared."""

from collections.abc import Mapping
from typing import Final

from amalgam.demo.task_item import Split

Pools = Mapping[Split, tuple[str, ...]]


def _pool(train: str, dev: str, test: str) -> Pools:
    """Three pools from comma-separated texts."""
    return {"train": _parts(train), "dev": _parts(dev), "test": _parts(test)}


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


VALUES: Final[Mapping[str, Pools]] = {
    "first": _pool(
        """Anna, Ben, Carla, David, Elena, Frank, Grace, Hugo, Irene, Jonas, Karin, Liam, Mona, Nils, Olga, Aisha,
        Bjorn, Chiara, Dieter, Emeka, Fiona, Gustavo, Hanna, Igor, Jelena, Kofi, Lucia, Magnus, Noor, Oskar, Paula,
        Rashid, Sonja, Tomas, Ursula, Viktor, Wanda, Yasmin, Zoltan""",
        "Quinn, Rosa, Stefan, Mila, Andre, Carmen",
        "Tara, Ulrich, Vera, Wendel, Xenia, Yusuf, Zoe, Milan",
    ),
    "last": _pool(
        """Keller, Novak, Silva, Jensen, Moreau, Brandt, Okafor, Tanaka, Rossi, Lindgren, Murphy, Costa, Haas, Petrov,
        Almeida, Berger, Castillo, Dahl, Engström, Fischer, Garcia, Hughes, Ivanov, Jansen, Kowalski, Lopez, Martinez,
        Nielsen, Olsen, Pereira, Quist, Richter, Schmidt, Torres, Ueda, Varga, Walsh, Yamada, Zhang""",
        "Dubois, Weber, Santos, Hofer, Kim, Ortega",
        "Ferrari, Nowak, Eriksen, Laurent, Mbeki, Suzuki, Romano, Byrne",
    ),
    "city": _pool(
        """Berlin, Paris, Madrid, Rome, Vienna, Prague, Lisbon, Dublin, Oslo, Warsaw, Athens, Boston, Denver, Lyon,
        Cairo, Quito, Bogota, Nairobi, Dakar, Delhi, Mumbai, Kyoto, Osaka, Seoul, Perth, Sydney, Auckland, Tampa,
        Phoenix, Seattle, Geneva, Basel, Munich, Bremen, Leipzig, Valencia, Bilbao, Palermo, Genoa, Malmo, Tampere""",
        "Turin, Zurich, Ghent, Bruges, Nantes, Split",
        "Krakow, Bergen, Seville, Marseille, Toronto, Hamburg, Naples, Porto",
    ),
    "thing": _pool(
        """lamps, chairs, desks, mugs, pens, shirts, boots, clocks, plates, towels, candles, mirrors, pillows,
        forks, spoons, knives, tables, shelves, curtains, jackets, socks, gloves, hats, belts, bags, wallets, watches,
        phones, cables, batteries, screws, nails, buckets, ropes, tents, stoves, pots, pans, radios, guitars""",
        "kettles, scarves, vases, sofas, drums, rugs",
        "ladders, blankets, baskets, hammers, bottles, carpets, brushes, umbrellas",
    ),
    "company": _pool(
        """Acme, Globex, Initech, Umbrella, Hooli, Vandelay, Stark Labs, Wayne Works, Cyberdyne, Tyrell, Northwind,
        Contoso, Fabrikam, Bluebird, Red Kite, Ironworks, Sunline, Greenleaf, Silverfox, Skyward, Cloudberry""",
        "Aperture, Soylent, Wonka, Duff",
        "Oceanic, Monarch, Weyland, Massive, Virtucon",
    ),
    "role": _pool(
        """engineer, nurse, teacher, designer, driver, analyst, cook, editor, lawyer, painter, farmer, barber, dentist,
        waiter, cashier, carpenter, mechanic, janitor, translator, gardener, surveyor, chemist, manager, clerk""",
        "welder, tailor, butcher, broker",
        "plumber, architect, pilot, librarian, baker",
    ),
    "word": _pool(
        """sales, python, finance, cloud, music, sports, travel, health, garden, family, history, science, fashion, art,
        design, physics, writing, cooking, dance, economics, education, film, fitness, gaming, hiking, insurance,
        logistics, marketing, nature, painting, photography, running, software, tennis, wine, yoga""",
        "energy, theatre, law, comics, surfing, beauty",
        "biology, cinema, poetry, robotics, sailing, chess, politics, pottery",
    ),
    "food": _pool(
        """rice, salt, beans, onions, butter, garlic, cheese, pepper, eggs, flour, sugar, tomatoes, lemon, milk, apples,
        bread, celery, chicken, corn, cucumber, fish, ham, leek, mushrooms, mustard, noodles, oats, oil, parsley, peas,
        potatoes, pumpkin, raisins, sage, soy, thyme, tofu, turkey, walnuts, zucchini""",
        "honey, basil, yeast, dill, bacon, figs",
        "carrots, ginger, olives, cream, lentils, mint, spinach, vinegar",
    ),
    "dish": _pool(
        """risotto, lasagna, goulash, paella, chili, curry, omelette, pancakes, ramen, stew, soup, salad, pizza, tacos,
        sushi, waffles, meatballs, porridge, pie, ratatouille, schnitzel, kebab, hummus, gumbo""",
        "quiche, falafel, fondue, biryani",
        "moussaka, gnocchi, borscht, burritos, dumplings",
    ),
    "team": _pool(
        """Eagles, Tigers, Bears, Sharks, Lions, Wolves, Falcons, Bulls, Hawks, Giants, Comets, Foxes, Hornets, Jets,
        Kings, Lakers, Magic, Nets, Owls, Rangers, Saints, Stars, Titans, Vikings, Warriors""",
        "Ravens, Cobras, Bisons, Pumas",
        "Panthers, Dragons, Rockets, Pirates, Knights",
    ),
    "species": _pool(
        """cat, dog, rabbit, horse, hamster, goat, pony, canary, turtle, donkey, snake, mouse, rat, duck, hen, pig, cow,
        frog, spider, iguana, alpaca, beagle, poodle, budgie""",
        "ferret, gecko, camel, toad",
        "parrot, llama, lizard, sheep, goose",
    ),
    "pet": _pool(
        """Bella, Max, Luna, Rocky, Daisy, Coco, Buddy, Molly, Oscar, Ruby, Charlie, Lucy, Milo, Rosie, Teddy, Toby,
        Sam, Poppy, Leo, Jack, Lola, Duke, Sadie, Zeus, Apollo, Gizmo, Cookie, Pumpkin""",
        "Simba, Nala, Felix, Tiger",
        "Shadow, Pepper, Ziggy, Biscuit, Willow",
    ),
    "code": _pool(
        "KX, AB, RT, LM, QS, DN, FW, JP, AC, BF, CK, DR, FH, HS, JB, KN, LP, MT, NV, PD, QR, RX, SB, TK, VL, WZ, XA",
        "CV, HZ, NB",
        "GT, YB, MK, WU, EL",
    ),
}

KEYS: Final[Mapping[str, Pools]] = {
    "buyer": _pool("buyer, customer, client, ordered_by", "purchaser", "shopper, sold_to"),
    "name": _pool("name, full_name, surname", "called", "person, known_as"),
    "city": _pool("city, town, city_name", "location", "place, home_town"),
    "product": _pool("product, item, article, item_name", "goods", "ware, merchandise"),
    "quantity": _pool("quantity, count, number, item_count", "pieces", "amount, how_many"),
    "price": _pool("price, unit_price, cost, item_price", "price_usd", "price_each, dollars"),
    "total": _pool("total, sum, total_price", "total_cost", "balance, total_usd"),
    "paid": _pool("paid, is_paid, settled, bill_paid", "was_paid", "cleared, has_paid"),
    "lines": _pool("lines, items, products, item_list", "entries", "contents, positions"),
    "guest": _pool("guest, visitor, traveler, guest_name", "lodger", "tourist, booked_by"),
    "date": _pool("date, day, when, on_day", "on_date", "iso_date, moment"),
    "nights": _pool("nights, stay_nights, duration", "night_count", "stay, nights_booked"),
    "breakfast": _pool("breakfast, with_breakfast, morning_meal", "has_breakfast", "breakfasts, wants_breakfast"),
    "email": _pool("email, mail, address, mail_to", "e_mail", "inbox, email_address"),
    "company": _pool("company, firm, employer, company_name", "business", "organization, works_for"),
    "contact": _pool("contact, entry, contact_data", "card", "profile, details"),
    "speakers": _pool("speakers, people, presenters, speaker_names", "talkers", "lecturers, spoken_by"),
    "topic": _pool("topic, subject, theme, talk_topic", "about", "matter, title"),
    "device": _pool("device, sensor, id, device_name", "unit", "instrument, sensor_id"),
    "readings": _pool("readings, values, data, sensor_values", "samples", "measured, measurements"),
    "alarm": _pool("alarm, alert, warning, alarm_raised", "alarmed", "siren, alarm_on"),
    "role": _pool("role, job, position, job_name", "job_title", "profession, occupation"),
    "salary": _pool("salary, pay, wage, yearly_pay", "earnings", "income, annual_salary"),
    "remote": _pool("remote, is_remote, from_home, remote_job", "remote_work", "telework, remote_ok"),
    "skills": _pool("skills, abilities, knowledge, skill_list", "expertise", "talents, skill_names"),
    "pet": _pool("pet, animal, patient, pet_called", "creature", "pet_name, companion"),
    "species": _pool("species, kind, type, animal_type", "breed", "animal_kind, sort"),
    "age": _pool("age, years, age_years", "years_old", "current_age, age_now"),
    "owner": _pool("owner, keeper, holder, pet_owner", "belongs_to", "master, owned_by"),
    "dish": _pool("dish, recipe, meal, dish_title", "food", "plate, meal_name"),
    "minutes": _pool("minutes, time, time_needed, total_minutes", "duration_min", "mins, minutes_taken"),
    "ingredients": _pool("ingredients, needs, parts, needed_food", "contains", "foods, made_of"),
    "vegan": _pool("vegan, is_vegan, vegan_dish", "plant_based", "vegan_friendly, for_vegans"),
    "home": _pool("home, host, first, home_team", "hosts", "home_side, at_home"),
    "away": _pool("away, visitors, second, away_team", "guests", "away_side, opponent"),
    "team": _pool("team, club, side, team_called", "squad", "team_name, players"),
    "goals": _pool("goals, score, points, goal_number", "scored", "goal_count, hits"),
    "parcel": _pool("parcel, package, shipment, parcel_code", "box", "consignment, parcel_id"),
    "weight": _pool("weight, kg, mass, weight_kg", "kilos", "kilograms, mass_kg"),
    "from": _pool("from, origin, start, start_city", "source", "departure, from_city"),
    "to": _pool("to, destination, end, end_city", "target", "arrival, to_city"),
    "fragile": _pool("fragile, is_fragile, fragile_goods", "breakable", "delicate, marked_fragile"),
    "stars": _pool("stars, rating, grade, given_stars", "star_rating", "star_count, mark"),
    "author": _pool("author, writer, reviewer, review_by", "written_by", "critic, author_name"),
    "tags": _pool("tags, labels, keywords, tag_words", "markers", "tag_list, hashtags"),
    "invoice": _pool("invoice, bill, reference, bill_code", "invoice_no", "receipt, invoice_id"),
    "stops": _pool("stops, via, stations, stop_cities", "halts", "stop_list, stops_at"),
    "warehouse": _pool("warehouse, store, site, store_city", "depot", "storage, stock_city"),
    "temperature": _pool("temperature, degrees, celsius, degrees_c", "temp", "temperature_c, warmth"),
    "rain": _pool("rain, rainy, is_raining, rain_falls", "wet", "rainfall, has_rain"),
}
