"""Code questions about a list of words or one text."""

from typing import Final

from amalgam.demo.code_template import CodeTemplate, row

TEXTS: Final[tuple[CodeTemplate, ...]] = (
    row(
        "starting_with",
        "words",
        "[w for w in {p} if w.startswith('{q}')]",
        """returns the words in {p} that start with '{q}'
        gives a list of all {p} beginning with '{q}'
        keeps only the {p} whose first letter is '{q}'
        filters {p} to the words that begin with '{q}'
        takes {p} and returns those starting with '{q}'""",
        "keeps those of {p} starting in '{q}'",
        """returns a list of the {p} that begin with '{q}'
        keeps all words in {p} starting with '{q}'""",
    ),
    row(
        "join_upper",
        "words",
        "'{q}'.join(w.upper() for w in {p})",
        """joins all {p} in upper case with '{q}' between them
        returns the {p} in capitals joined by '{q}'
        turns {p} into upper case and joins them with '{q}'
        gives one string of the upper-case {p}, separated by '{q}'
        takes {p}, makes each upper case and puts '{q}' between them""",
        "joins the capitalized {p} by '{q}'",
        """returns all {p} in upper case joined with '{q}'
        makes one string of the {p} in capitals, separated by '{q}'""",
    ),
    row(
        "lengths",
        "words",
        "{{w: len(w) for w in {p}}}",
        """returns a dictionary from each word in {p} to its length
        maps each of the {p} to its length
        builds a dict of the {p} and their lengths
        gives a dictionary with the length of every word in {p}
        takes {p} and returns a dict of word to length""",
        "makes a dictionary of the lengths of {p}",
        """returns a dict that maps every word in {p} to its length
        builds a dictionary of the length of each of the {p}""",
    ),
    row(
        "longest",
        "words",
        "max({p}, key=len)",
        """returns the longest word in {p}
        finds the longest of {p}
        gives the word with the most letters in {p}
        takes {p} and returns the longest one
        picks the word of greatest length from {p}""",
        "gives the longest entry of {p}",
        """returns the word in {p} with the greatest length
        finds the longest one of the {p}""",
        empty=False,
    ),
    row(
        "reverse_each",
        "words",
        "[w[::-1] for w in {p}]",
        """returns a list with each word in {p} reversed
        reverses every one of the {p}
        gives all {p} spelled backwards
        takes {p} and turns each word around
        spells each word of {p} backwards""",
        "gives a list of the {p} backwards, word by word",
        """returns a list of all {p} with each one reversed
        spells every word in {p} backwards""",
    ),
    row(
        "occurrences",
        "words",
        "{{w: {p}.count(w) for w in {p}}}",
        """returns a dictionary of how often each word occurs in {p}
        counts how many times each of the {p} appears
        builds a dict from each word in {p} to its count
        gives the number of occurrences of every word in {p}
        takes {p} and returns a dictionary of word counts""",
        "maps the words of {p} to how often they appear",
        """returns a dict with the count of each word in {p}
        builds a dictionary of how many times each of the {p} occurs""",
    ),
    row(
        "unique",
        "words",
        "list(dict.fromkeys({p}))",
        """returns {p} without duplicates, in the same order
        removes repeated words from {p} and keeps the order
        gives the unique words of {p} in their order
        takes {p} and drops duplicates, keeping the first of each
        lists each of the {p} once, in order of appearance""",
        "deletes duplicates in {p} but keeps order",
        """returns the unique {p} in the same order
        removes duplicates from {p} and keeps their order""",
    ),
    row(
        "vowels",
        "text",
        "sum(1 for c in {p} if c in 'aeiou')",
        """returns the number of vowels in the string {p}
        counts the vowels in the text {p}
        gives how many letters of the string {p} are vowels
        takes the string {p} and counts its vowels
        tells how many vowels the text {p} has""",
        "counts vowels of the string {p}",
        """returns how many vowels the string {p} has
        counts all vowels in the string {p}""",
    ),
    row(
        "palindrome",
        "text",
        "{p} == {p}[::-1]",
        """returns whether the string {p} reads the same backwards
        checks if the text {p} is a palindrome
        tells whether the string {p} equals its reverse
        takes the string {p} and returns True if it is a palindrome
        says if the text {p} is the same when reversed""",
        "tests if the string {p} is a palindrome",
        """returns True if the string {p} reads the same in reverse
        checks whether the string {p} is a palindrome""",
    ),
    row(
        "sorted_words",
        "text",
        "sorted({p}.split())",
        """returns the words of the text {p} in alphabetical order
        splits the string {p} into words and sorts them
        gives a sorted list of the words in the string {p}
        takes the text {p} and lists its words from a to z
        sorts the words of the string {p}""",
        "lists the words of string {p} alphabetically",
        """returns a sorted list of the words of the string {p}
        splits the text {p} into words in alphabetical order""",
    ),
)
