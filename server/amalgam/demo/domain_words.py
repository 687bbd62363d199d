"""Words that training alone mixes into worlds of its own, so that it teaches to read a schema and not to know one."""

from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TABLES: Final = _words(
    """
    actors airports albums artists beers bikes birds boats buses canals caves chefs clinics clubs coaches coins
    courses dams engines games hikers horses journals lawyers markets mines novels papers parks peaks pilots
    plants players poems ponds printers roads robots routers schools sensors servers shops stadiums stamps
    trains trams trucks tunnels wells wines zoos agents bands bottles doctors drivers events factories forests
    guitars kitchens lamps lessons machines monuments offices projects recipes rockets sculptures swimmers
    tablets temples theaters toys watches windmills writers
    """
)
"""Plurals, for tables and child tables."""

LABELS: Final = _words(
    """
    title name label code model nickname full_name serial designation alias handle caption heading item_name
    short_name identifier public_name entry subject callname tag_name official_name trade_name article
    """
)
"""Columns that name a row."""

CATEGORIES: Final = _words(
    """
    color style status material shape grade owner sponsor supplier origin season format level segment zone state
    vendor manager editor sector shift tier flavor medium habitat license currency dialect theme purpose country
    city genre brand climate mood finish fabric sponsor_name home_town trainer size_class risk_group
    payment_type energy_source
    """
)
"""Columns of few values."""

NUMBERS: Final = _words(
    """
    weight height width depth speed power budget price cost score rating votes sales profit tax fee capacity
    population floors doors wheels windows goals points medals awards copies chapters tracks minutes hours days
    years months temperature pressure voltage fuel_used range_km top_speed delay downloads clicks errors visits
    salary age mileage pages stock quantity distance passengers length diameter income debts wins losses laps
    meters liters grams watts calories students teachers employees rooms beds seats stars levels upgrades
    repairs_needed customers followers likes shares interest bonus discount turnover growth absences credits
    crew tonnage horsepower cylinders megapixels
    """
)
"""Columns of integers."""

VALUES: Final = _words(
    """
    Red Blue Green Amber Violet Silver Golden Crimson Ivory Copper Maple_Leaf Cedar Birch Walnut Bamboo Granite
    Marble Cotton Linen Velvet Leather Steel Bronze Glass Paper Alice Bruno Clara Dmitri Eduardo Fatima Gustav
    Helena Ivan Julia Kamal Leonie Marcus Nadia Orlando Petra Rashid Sofia Tobias Valerie London Chicago Dakar
    Delhi Geneva Havana Istanbul Jakarta Kyiv Lagos Manila Nairobi Osaka Perth Quito Riga Santiago Tallinn
    Utrecht Valencia Winnipeg Zagreb Spring Summer Autumn Winter Monday Tuesday Friday Sunday Morning Evening
    Active Paused Archived Pending Approved Rejected Draft Final Public Private Secret Basic Premium Standard
    Deluxe Economy Business Junior Senior Expert Beginner Small Medium Large Huge Tiny Round Square Oval Flat
    Curved Sweet Sour Salty Bitter Spicy Mild Jazz Rock Folk Opera Techno Blues Baroque Modern Gothic Classic
    Vintage Digital Analog Manual Hybrid Electric Diesel Solar Nuclear Coal Wood Plastic Ceramic Silk Wool Denim
    River_Side Hill_Top Lake_View Green_Valley Red_Rock Blue_Lagoon North_Gate South_Point West_End East_Side
    Grand_Central Silver_Creek Golden_Bay Iron_Hill Stone_Bridge White_Oak Black_Forest High_Street Long_Beach
    New_Haven San_Marco Saint_Paul Port_Louis El_Paso Cape_Cod Los_Andes Rio_Grande Brown_Sugar Dark_Roast
    Soft_Touch Full_Time Part_Time First_Class Second_Hand Low_Risk High_Risk Ready_Made Hand_Made Euro Dollar
    Yen Pound Krona Franc Rupee Swiss German Spanish Finnish Danish Korean Arabic Swahili Bengali Hindi Latin
    """
)
"""Values of categories; an underline stands for the blank of two words."""
