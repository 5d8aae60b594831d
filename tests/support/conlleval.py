"""The scores of tagged sentences as the script of the CoNLL shared tasks counts them, written by hand."""


def conlleval(expected, predicted):
    """F1, precision and recall as the shared task's Perl script counts: tag by tag, sentences between blank lines.

    It never makes a list of spans: a span is right if it began on both sides at one word with one type, and ends on
    both sides at one word.
    """

    def begins(before, tag):
        (old, old_type), (new, new_type) = before, tag
        if (old, new) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}:
            return True
        return new != "O" and old_type != new_type

    def ends(before, tag):
        (old, old_type), (new, new_type) = before, tag
        if (old, new) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}:
            return True
        return old != "O" and old_type != new_type

    right = found_expected = found_predicted = 0
    inside = False
    old_expected = old_predicted = ("O", "")
    stream = [
        pair for sides in zip(expected, predicted, strict=True) for pair in [*zip(*sides, strict=True), ("O", "O")]
    ]
    for tags in stream:
        gold, guess = ((tag[0], tag[2:]) for tag in tags)
        if inside:
            over = ends(old_expected, gold), ends(old_predicted, guess)
            if all(over) and old_expected[1] == old_predicted[1]:
                right, inside = right + 1, False
            elif over[0] != over[1] or gold[1] != guess[1]:
                inside = False
        if begins(old_expected, gold) and begins(old_predicted, guess) and gold[1] == guess[1]:
            inside = True
        found_expected += begins(old_expected, gold)
        found_predicted += begins(old_predicted, guess)
        old_expected, old_predicted = gold, guess
    precision = right / found_predicted if found_predicted else 0.0
    recall = right / found_expected if found_expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"span_f1": f1, "span_precision": precision, "span_recall": recall}
