"""Prompts by which a way to route is chosen, so that those of `routing_prompts` are asked once, of what was chosen.

The same ten tasks in wordings of their own, about things of their own, and other prompts of no task. No router is
fitted with any of them.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final

_ARTICLES: Final = (
    "A storm has torn the roof off the old market hall. Traders will sell their goods in tents until the spring.",
    "Chemists have made a glue that holds under water and comes off with a little vinegar. Shipyards want to try it.",
    "The airline cancels forty flights a week because it cannot find enough pilots. Passengers get their money back.",
)
_SHORT: Final = ("The lift is out of order.", "I would like a table for four.", "Does this bus go to the harbour?")
_NOTES: Final = (
    "Peter Novak, 52, of Brno has driven a taxi since 1999.",
    "Parcel 5521: six plates at 4.50 each, for Helsinki, paid in cash.",
    "The course starts on 9 September at 18:30 in room B12 and costs 45 euros.",
)
_JOBS: Final = (
    "sorts words by their length", "adds up the digits of a number", "turns Celsius into Fahrenheit",
)  # fmt: skip
_SHAPES: Final = ("postcodes of five digits", "file names that end in .txt", "words with a double letter")
_ASKED: Final = (
    "suppliers from Italy", "the three cheapest flights", "how many tickets each agent has closed",
)  # fmt: skip
_OPINIONS: Final = (
    "The zip broke on the second day.", "Fast, quiet and easy to clean. I am delighted.",
    "It does what it should, no more.",
)  # fmt: skip

_WORDINGS: Final[Mapping[str, tuple[Sequence[str], Sequence[str]]]] = {
    "sql": (
        ("{} - as SQL please", "From the tables below, select {}.", "I want to see {}. What do I type into psql?",
         "Show {} with a SQL statement", "Build me a database query: {}", "My boss wants {}. Which query do I run?",
         "select {} from the right table, grouped where needed", "Translate into SQL: {}"),
        _ASKED,
    ),
    "python": (
        ("Python: something that {}", "Define a function that {} in Python.", "Need a Python script that {}",
         "Please write me some code in python3, it {}", "How would you implement a function that {}?",
         "Finish this function: def run(x): it {}", "Give me Python code. It {}.",
         "Using only the standard library of Python, write what {}"),
        _JOBS,
    ),
    "regex": (
        ("regex for {}", "I am looking for a regular expression for {}", "Match {} with a pattern, please",
         "Write me a regexp which finds {}", "What is the regex that accepts only {}?",
         "grep: which expression gives me {}?", "Regular expression needed: {}", "A pattern that catches {} in a log"),
        _SHAPES,
    ),
    "json": (
        ("{} -> JSON", "Convert to json: {}", "I need this as a JSON object: {}", "Store what follows in JSON. {}",
         "Please produce valid JSON from this note: {}", "{} Reply with nothing but JSON.",
         "What are the facts here? Use JSON. {}", "Create a json with all fields of: {}"),
        _NOTES,
    ),
    "xml": (
        ("{} -> XML", "Convert to xml: {}", "I need this as an XML element: {}", "Store what follows in XML. {}",
         "Please produce valid XML from this note: {}", "{} Reply with nothing but XML.",
         "What are the facts here? Use XML tags. {}", "Create an xml with all fields of: {}"),
        _NOTES,
    ),
    "german": (
        ("{} - in German?", "German: {}", "Translate this for a colleague in Vienna, into German: {}",
         "How would a German say: {}", "Give the German version of: {}", "Write this in German, please: {}",
         "'{}' auf Deutsch, please", "I speak no German. How do I say: {}"),
        _SHORT,
    ),
    "french": (
        ("{} - in French?", "French: {}", "Translate this for a colleague in Lyon, into French: {}",
         "How would a Frenchman say: {}", "Give the French version of: {}", "Write this in French, please: {}",
         "'{}' en français, please", "I speak no French. How do I say: {}"),
        _SHORT,
    ),
    "summary": (
        ("Summary please. {}", "Summarize: {}", "I have no time to read this. What does it say? {}",
         "Make it short: {}", "Boil this down to one sentence: {}", "{}\nCan you sum up the text above?",
         "Main points of this article, briefly: {}", "What is this text about, in a few words? {}"),
        _ARTICLES,
    ),
    "headline": (
        ("Headline? {}", "{}\nA headline for this, please.", "Our newspaper needs a title for this text: {}",
         "Come up with a heading: {}", "Write a catchy title for this story. {}", "What do I call this article? {}",
         "Give me three headlines to choose from. {}", "Title, please, no more than five words: {}"),
        _ARTICLES,
    ),
    "sentiment": (
        ("Sentiment? {}", "Positive or negative: {}", "Was the writer pleased? {}",
         "Does this sound like praise? {}", "Is that a good or a bad review: {}",
         "How does this customer feel? {}", "Classify this opinion as positive, negative or neutral. {}",
         "{}\nIs the mood of this review good or bad?"),
        _OPINIONS,
    ),
}  # fmt: skip

DEVELOPMENT: Final[Mapping[str, Sequence[str]]] = {
    task: tuple(wording.format(gap) for wording, gap in product(wordings, gaps))
    for task, (wordings, gaps) in _WORDINGS.items()
}
"""By the name of the target."""

NEUTRAL_DEVELOPMENT: Final = (
    "Where is Lake Titicaca?", "Which language do people speak in Brazil?", "How heavy is an elephant?",
    "Who discovered penicillin?", "Why do cats purr?", "What is the tallest building in the world?",
    "Tell me about the life of bees.", "I need a joke for a speech.", "Can you sing?", "Good evening",
    "Sorry, I meant something else.", "Never mind.", "That is great, thank you!", "Shorter, please.",
    "And what about the second one?", "Give me an example.", "Which wine goes with fish?", "How do I make bread?",
    "What can I cook for a vegan friend?", "How do I bake a cake without eggs?", "My tooth hurts. What can I do?",
    "How do I get fit in a month?", "Is it normal to be tired all day?", "How do I fix a dripping tap?",
    "Which colour suits a small bedroom?", "When do I cut roses?", "How do I keep deer out of my garden?",
    "What do hamsters eat?", "Ten days in Japan: what should I see?", "What is the best time to visit Iceland?",
    "Do I need a visa for Turkey?", "How much does it cost to live in Berlin?", "How do I open a bank account?",
    "What is a pension fund?", "Help me to prepare a talk about volcanoes.", "Write a thank-you note to a neighbour.",
    "Write a limerick about a goat.", "Write a dialogue between a king and a fool.", "Compose a haiku on snow.",
    "Draft a letter of complaint to my bank.", "Invent a bedtime story about a mouse.", "Describe your ideal day.",
    "Explain how tides arise.", "Explain inflation as if I were ten.", "What is the difference between jam and jelly?",
    "How many days has a leap year?", "What is 9 times 13?", "How many grams are in an ounce?",
    "What is half of 370?", "Who was Cleopatra?", "When was the printing press invented?",
    "What caused the First World War?", "How do submarines dive?", "What is a quark?", "How are pearls formed?",
    "Which team won the cup last year?", "How do I juggle three balls?", "What are the rules of rugby?",
    "Which instrument is easiest to learn?", "Recommend a board game for two.", "What is a good podcast on science?",
    "Which film should I see with my parents?", "Can you recommend a novel set in Egypt?",
    "What does the name Sophie mean?", "Where does the expression 'break a leg' come from?",
    "How do I learn to draw?", "My phone gets hot. Why?", "How do I connect a printer?", "What is a firewall?",
    "Is my data safe with you?", "What do you know about me?", "Should I move to another city?",
    "I had a row with my sister. What now?", "How do I ask someone out?", "What do I give a newborn?",
    "Wo liegt der Bodensee?", "Was kann ich heute kochen?", "Que faire à Marseille un dimanche ?",
    "Recommande-moi un film.", "¿Cómo se hace una paella?", "Raccontami una storia.", "Как приготовить борщ?",
)  # fmt: skip
"""None of these is a task."""
