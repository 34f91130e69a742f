"""What is asked of a model, by kind of answer.

Every template ends by naming the form of the last line that `extract` reads.
None of them spells out an answer in that form: small models repeat it.
"""

TEMPLATES = {
    "number": (
        "{question}\n\nThink step by step. Then finish with one line that "
        'says "The answer is" and the number.'
    ),
    "math": (
        "{question}\n\nThink step by step. Then finish with the final answer "
        "alone inside \\boxed{}."
    ),
    "choice": (
        "{question}\n\nThink step by step. Then finish with one line that "
        'says "The answer is" and the letter of the right option in '
        "parentheses."
    ),
    "boolean": (
        "{question}\n\nThink step by step. Then finish with one line that "
        'says "The answer is" and True or False.'
    ),
    "text": (
        "{question}\n\nThink step by step. Then finish with one line that "
        'says "The answer is" and the answer in as few words as possible.'
    ),
}

_NUMBER = (
    (
        "A baker fills 6 trays with 8 rolls each and sells 31 rolls before "
        "noon. How many rolls are left?",
        "The baker makes 6 * 8 = 48 rolls. After selling 31, there are "
        "48 - 31 = 17 rolls left.\nThe answer is 17.",
    ),
    (
        "Tickets cost $4 for children and $9 for adults. What do 3 children "
        "and 2 adults pay together?",
        "The children pay 3 * 4 = 12 dollars. The adults pay 2 * 9 = 18 "
        "dollars. Together that is 12 + 18 = 30 dollars.\nThe answer is 30.",
    ),
    (
        "A tank holds 90 litres and is one third full. Water runs in at 5 "
        "litres a minute. After how many minutes is it full?",
        "One third of 90 is 30 litres. The tank still needs 90 - 30 = 60 "
        "litres. That takes 60 / 5 = 12 minutes.\nThe answer is 12.",
    ),
    (
        "Mara is twice as old as Theo, and Theo is 3 years older than Kim, "
        "who is 6. How old is Mara?",
        "Theo is 6 + 3 = 9 years old. Mara is 2 * 9 = 18 years old.\n"
        "The answer is 18.",
    ),
)
_MATH = (
    (
        "Solve $3x + 4 = 19$ for $x$.",
        "Subtract 4 from both sides: $3x = 15$. Divide by 3: $x = 5$.\n"
        "\\boxed{5}",
    ),
    (
        "What is the probability that two rolls of a fair die show the same "
        "number?",
        "Whatever the first roll shows, the second matches it with "
        "probability $\\frac{1}{6}$.\n\\boxed{\\frac{1}{6}}",
    ),
    (
        "Find the distance between the points $(1, 2)$ and $(4, 4)$.",
        "The differences are 3 and 2, so the distance is "
        "$\\sqrt{3^2 + 2^2} = \\sqrt{13}$.\n\\boxed{\\sqrt{13}}",
    ),
    (
        "For which real numbers $t$ is $t^2 < 9$?",
        "The square is below 9 exactly when $t$ lies strictly between $-3$ "
        "and $3$.\n\\boxed{(-3, 3)}",
    ),
)
_CHOICE = (
    (
        "Which of these is a prime number?\n(A) 21\n(B) 27\n(C) 29\n(D) 33",
        "21, 27 and 33 are multiples of 3. 29 has no divisor but 1 and "
        "itself.\nThe answer is (C).",
    ),
    (
        "What happens to most metals when they are heated?\n(A) They shrink"
        "\n(B) They expand\n(C) They turn into gas at once\n(D) Nothing",
        "Heat makes the atoms of a metal swing further apart, so the metal "
        "expands.\nThe answer is (B).",
    ),
    (
        "A train leaves at 14:50 and arrives at 16:05. How long is the trip?"
        "\n(A) 65 minutes\n(B) 70 minutes\n(C) 85 minutes\n(D) 75 minutes",
        "From 14:50 to 15:50 is 60 minutes, and from 15:50 to 16:05 another "
        "15. That is 75 minutes.\nThe answer is (D).",
    ),
)
_BOOLEAN = (
    (
        "Every square is a rectangle. Is every rectangle a square?",
        "A rectangle with sides 2 and 3 has unequal sides and so is no "
        "square.\nThe answer is False.",
    ),
    (
        "( True or False ) and not False is",
        "True or False is True. Not False is True. True and True is True.\n"
        "The answer is True.",
    ),
    (
        "not ( True and True ) is",
        "True and True is True, and its negation is False.\n"
        "The answer is False.",
    ),
)
_TEXT = (
    (
        "Sort these words alphabetically: pear apple mango",
        "a comes before m, and m before p.\nThe answer is apple mango pear.",
    ),
    (
        "Which planet is closest to the sun?",
        "The order from the sun begins with Mercury, Venus and Earth.\n"
        "The answer is Mercury.",
    ),
    (
        "What day comes two days after Monday?",
        "The day after Monday is Tuesday, and the next is Wednesday.\n"
        "The answer is Wednesday.",
    ),
)
EXAMPLES = {
    "number": _NUMBER,
    "math": _MATH,
    "choice": _CHOICE,
    "boolean": _BOOLEAN,
    "text": _TEXT,
}
