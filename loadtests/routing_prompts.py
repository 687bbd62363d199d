"""Prompts of ten tasks, some close to each other, and prompts of no task, for what a router gets right.

Each task has wordings to fit a router with and other wordings that are held out; what is filled in differs too. The
close ones: `python` and `regex`; `json` and `xml`; `german` and `french`; `summary`, `headline` and `simpler`. The
prompts of no task are `NEUTRAL`; none of them stands in `amalgam.routing.neutral_prompts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class TaskPrompts:
    """Wordings with one gap ``{}``, and what fills it.

    Attributes:
        fitted: wordings of examples.
        held_out: wordings that nothing was fitted with.
        fillings: for both; the first half for examples, the second for what is held out.
    """

    fitted: Sequence[str]
    held_out: Sequence[str]
    fillings: Sequence[str]

    def examples(self, count: int) -> list[str]:
        """``count`` prompts to fit with, of every wording as many."""
        return _crossed(self.fitted, self.fillings[: len(self.fillings) // 2], count)

    def tests(self, count: int) -> list[str]:
        """``count`` prompts in other wordings about other things."""
        return _crossed(self.held_out, self.fillings[len(self.fillings) // 2 :], count)


def _crossed(wordings: Sequence[str], fillings: Sequence[str], count: int) -> list[str]:
    pairs = [(w, f) for shift in range(len(fillings)) for place, w in enumerate(wordings)
             for f in (fillings[(place + shift) % len(fillings)],)]  # fmt: skip
    return [wording.format(filling) for wording, filling in pairs[:count]]


_PASSAGES: Final = (
    "The council voted on Tuesday to close the old bridge for two years while it is rebuilt. Traders fear for their "
    "income, and the mayor promised a ferry.",
    "Researchers found that bees remember human faces for several days. They trained the insects with sugar water and "
    "photographs.",
    "Our quarterly revenue grew by 8 percent, mostly because of the new subscription plan, while costs for shipping "
    "rose twice as fast.",
    "The museum reopens in May after a fire damaged its roof. Most paintings had been moved to a cellar in time.",
    "A storm cut power to forty villages last night. Crews expect that repairs will last until Friday.",
    "The committee recommends that schools begin an hour later, since pupils who sleep longer make fewer mistakes.",
    "Sales of electric bicycles passed those of cars in three cities. Makers lack batteries.",
    "Divers have found a ship that sank in 1740 with silver from Mexico on board. Who owns the load is not clear.",
    "The bakery on Mill Street will close at the end of the month after ninety years. Its owner found no heir.",
    "A survey of 2,000 parents shows that children read less on paper, but listen to more books than ten years ago.",
    "The new tram line carries twice as many people as planned. On weekends the operator will send longer trains.",
    "The team lost its third match in a row, although the keeper stopped two penalties and the captain hit the post.",
)
_SENTENCES: Final = (
    "The train leaves at nine.", "Where can I buy stamps?", "My sister works in a hospital.",
    "We will call you back tomorrow.", "The soup is too hot.", "Please close the window before you leave.",
    "How long does the journey take?", "I have lost my passport.", "The meeting has been moved to Thursday.",
    "Two coffees without sugar, please.",
)  # fmt: skip
_RECORDS: Final = (
    "Maria Lopez, 34, lives in Lima and works as a nurse.",
    "Order 4471: three lamps for 20 euros each, to Oslo.",
    "The concert is on 3 May at 20:00 in the town hall; tickets are 15 euros.",
    "Invoice from Baker Ltd dated 2 June, total 310.50, due in 30 days.",
    "Flight KL1023 from Amsterdam to London departs at 07:45 from gate D7.",
    "Table 12 is booked by Tom Reed from Monday to Wednesday with breakfast.",
    "The patient, Ann Kim, born 1980, takes 5 mg of warfarin a day.",
    "The seminar takes place on 12 March in Prague; the fee is 80 euros and lunch is included.",
    "Package 88-13 weighs 4.2 kg and was sent by Ivan Petrov to Sofia on Monday.",
    "Tenant: Joan Price. Flat 7b, rent 640 pounds, due on the first of each month.",
    "The car is a red Fiat from 2011 with 120,000 km and new tyres.",
    "Laptop Z3, 16 GB of memory, 512 GB disk, 899 dollars, two in stock.",
)
_FUNCTIONS: Final = (
    "reverses a linked list", "counts the vowels of a string", "finds the two largest numbers of a list",
    "merges two sorted lists", "tells whether a year is a leap year", "flattens nested lists",
    "computes the greatest common divisor", "removes duplicates but keeps the order",
    "splits a list into chunks of n", "checks whether brackets are balanced",
)  # fmt: skip
_PATTERNS: Final = (
    "phone numbers with a country code", "dates like 2024-05-31", "e-mail addresses", "words that begin with a capital",
    "IPv4 addresses", "hexadecimal colours", "lines that end in a semicolon", "prices in euros", "twelve-hour times",
    "quoted strings",
)  # fmt: skip
_QUESTIONS: Final = (
    "customers who ordered nothing this year", "the average salary of each department",
    "products that are out of stock", "the five longest films", "how many students take every course",
    "invoices that are overdue by a month", "cities with more than two branches",
    "the newest comment of each user", "employees who earn more than their manager", "the total sales by quarter",
)  # fmt: skip
_REVIEWS: Final = (
    "The hotel was clean but the staff ignored us.", "Best headphones I ever owned!",
    "It broke after a week and nobody answers my mails.", "Delivery took a while, the shoes are fine.",
    "The film bored me to tears.", "A cosy restaurant, we will come again.", "The app crashes each time I open it.",
    "Works as described, nothing special.", "I waited two hours for cold soup.",
    "My children love this game, and so do I.", "Far too expensive for what you get.",
    "The guide was friendly and knew a lot.",
)  # fmt: skip

TASKS: Final[Mapping[str, TaskPrompts]] = {
    "sql": TaskPrompts(
        ("Write a SQL query for {}.", "Which SELECT statement gives me {}?",
         "I need {} from our database; give me SQL.",
         "SQL: {}", "Query the tables for {} and write the statement in SQL.", "What is the SQL to find {}?",
         "Please list {}. Our database is MySQL.", "Write a select over the two tables that shows {}.",
         "Database question: {}. Answer with a query.", "Help me query {} from SQLite."),
        ("How do I get {} with SQL?", "Turn this into a query for PostgreSQL: {}.", "Give me the SELECT that lists {}.",
         "With a join over the tables, find {} (SQL please)."),
        _QUESTIONS,
    ),
    "python": TaskPrompts(
        ("Write a Python function that {}.", "Implement a function in Python which {}.",
         "Python code please: a function that {}.", "def solution(...): complete this, it {}.",
         "I need a small Python helper that {}.", "How do I write a function that {}?", "Code this in Python: it {}.",
         "Write code that {}.", "Can you program something that {}? Python, please.", "A one-liner in Python that {}"),
        ("Could you code something in Python that {}?", "Show me a Python implementation that {}.",
         "Give me a def that {}, in Python 3 and with type hints.", "Program a function that {}. Use Python."),
        _FUNCTIONS,
    ),
    "regex": TaskPrompts(
        ("Write a regular expression that matches {}.", "Give me a regex for {}.", "Which regex finds {}?",
         "I need a pattern for re.compile that matches {}.", "Regular expression for {}, please.",
         "What regexp do I use to find {}?", "I want to match {}. Which expression do I need?",
         "A regex to validate {}, please", "Find {} in a text with a regular expression.",
         "Pattern (regex) that captures {}"),
        ("How can I match {} with a regex?", "A regexp that captures {}?",
         "Build a pattern that only accepts {} (regex).",
         "What regular expression would validate {}?"),
        _PATTERNS,
    ),
    "json": TaskPrompts(
        ("Extract the fields as JSON: {}", "Turn this into a JSON object. {}", "Give me JSON with the facts of: {}",
         "{}\nReturn a JSON object with keys and values.", "Parse into JSON: {}", "Put the details into JSON. {}",
         "Read this and answer in JSON: {}", "{}\nAs JSON, please.", "Make a JSON record of the following text: {}",
         "Output JSON for: {}"),
        ("Represent the following as JSON. {}", "{} Answer in JSON only.", "What would this look like in JSON? {}",
         "Fill a JSON structure from this text: {}"),
        _RECORDS,
    ),
    "xml": TaskPrompts(
        ("Convert this to XML: {}", "Write the following as an XML document. {}", "Give me XML with the facts of: {}",
         "{}\nReturn XML elements for it.", "Mark this up with XML tags: {}", "Put the details into XML. {}",
         "Read this and answer in XML: {}", "{}\nAs XML, please.", "Make an XML record of the following text: {}",
         "Output XML for: {}"),
        ("Represent the following as XML. {}", "{} Answer in XML only.", "What would this look like in XML? {}",
         "Fill an XML structure from this text: {}"),
        _RECORDS,
    ),
    "german": TaskPrompts(
        ("Translate to German: {}", "How do you say this in German? {}", "German translation, please: {}",
         "{} In German, please.", "Put this into German: {}", "Translate the sentence into German. {}",
         "What does this mean in German: {}", "Say in German: {}", "I need the German for this: {}",
         "English to German: {}"),
        ("What is the German for: {}", "I want to write to someone in Berlin. Translate into German: {}",
         "Could you give me '{}' in German?", "Please render the sentence in German. {}"),
        _SENTENCES,
    ),
    "french": TaskPrompts(
        ("Translate to French: {}", "How do you say this in French? {}", "French translation, please: {}",
         "{} In French, please.", "Put this into French: {}", "Translate the sentence into French. {}",
         "What does this mean in French: {}", "Say in French: {}", "I need the French for this: {}",
         "English to French: {}"),
        ("What is the French for: {}", "I want to write to someone in Paris. Translate into French: {}",
         "Could you give me '{}' in French?", "Please render the sentence in French. {}"),
        _SENTENCES,
    ),
    "summary": TaskPrompts(
        ("Summarise this text: {}", "Write a short summary. {}", "Give me the gist of the following: {}",
         "{}\nSum this up in one sentence.", "What are the main points? {}", "Summarize in brief: {}",
         "tldr {}", "Make this shorter, keep what matters: {}", "{}\nWhat does the text say, in short?",
         "A one-sentence summary of: {}"),
        ("Can you condense this for me? Summary: {}", "TL;DR please: {}", "Shorten to a brief summary. {}",
         "In a nutshell, what does this say? {}"),
        _PASSAGES,
    ),
    "headline": TaskPrompts(
        ("Write a headline for this article: {}", "Suggest a title. {}", "What would be a catchy headline? {}",
         "{}\nGive it a newspaper headline.", "Headline, please: {}", "How would you title this? {}",
         "I need a title for my article: {}", "{}\nWhat should the headline be?", "Title for this story: {}",
         "Find me a headline of at most six words. {}"),
        ("Find a good title for the following story: {}", "Think of a headline that makes people read on. {}",
         "Which headline would you print above this? {}", "Title this piece: {}"),
        _PASSAGES,
    ),
    "sentiment": TaskPrompts(
        ("Is this review positive or negative? {}", "Classify the sentiment: {}",
         "Sentiment of the following review (positive, neutral, negative): {}", "Rate the mood of this review. {}",
         "Label this as positive or negative: {}", "Was this customer happy or unhappy? {}",
         "What is the tone of the following? {}", "{}\nPositive or negative?",
         "Say whether this is praise or a complaint: {}",
         "Sentiment analysis: {}"),
        ("Does the customer sound happy? Tell me the sentiment. {}", "Positive, negative or neutral? {}",
         "What sentiment does this express: {}", "Judge the tone of the review: {}"),
        _REVIEWS,
    ),
}  # fmt: skip
"""By the name of the target."""

NEUTRAL: Final = (
    "What is the capital of Mongolia?", "Tell me a joke about penguins.", "How long do I boil an egg?",
    "Who painted the Mona Lisa?", "Why is the sky blue?", "Recommend three novels by Japanese authors.",
    "My dog eats grass all the time. Should I worry?", "Hello! How are you today?", "Thanks, that was helpful.",
    "What should I wear at a wedding in October?", "Explain photosynthesis to a child.",
    "How tall is Mount Kilimanjaro?", "Plan a weekend in Lisbon for two people.",
    "What is the difference between a virus and a bacterium?", "Write a poem about the sea in winter.",
    "How do I remove a red wine stain from a carpet?", "Who won the football world cup in 1998?",
    "Give me an idea for a birthday present for my grandfather.", "What does a neutron star consist of?",
    "Is it safe to eat raw mushrooms?", "How do I tie a bow tie?", "Who are you and what can you do?",
    "What time is it in Tokyo when it is noon in London?", "Describe the taste of a mango.",
    "How does a refrigerator work?", "What are the rules of chess?",
    "Help me to write a letter to the owner of my flat.",
    "My bicycle's chain keeps falling off. What can I do?", "What is the meaning of the word serendipity?",
    "Name five rivers in South America.", "How can I fall asleep faster?", "What causes inflation?",
    "Please continue.", "Can you say that again more politely?", "How many bones has a human body?",
    "What is a good recipe for lentil soup?", "When did the Roman Empire fall?",
    "Should I learn the piano or the guitar first?", "What is 17 times 23?", "How far away is the moon?",
    "Write a short story about an old sailor.", "What are the symptoms of a cold?",
    "How do vaccines work?", "Which plants grow well in the shade?", "Wie wird das Wetter morgen?",
    "Quelle est la hauteur de la tour Eiffel ?", "¿Cuál es la capital de Chile?", "Tell me about the history of tea.",
    "How do I change a flat tyre?", "What do you think about pineapple on pizza?",
)  # fmt: skip
"""What people ask an assistant that is none of the tasks."""
