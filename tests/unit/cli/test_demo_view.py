"""The demo's summary for people."""

from webhookd.cli.demo.accounts import Line, Summary
from webhookd.cli.demo.view import summary_table, summary_text


def test_every_column_that_is_seldom_there_is_explained() -> None:
    calm = Summary(3, {"a": Line(owed=3, delivered=3, received=3)})
    assert summary_text(calm) == (
        "owed         the deliveries that 3 events meant for an endpoint\n\n3 events; every delivery is accounted for."
    )
    assert "retrying" not in summary_table(calm)
    wild = Summary(9, {"a": Line(9, 1, 2, 1, 1, 4, duplicates=1, unverified=1), "b": Line(retrying=1)}, 3)
    heads = summary_table(wild).splitlines()[1].split()
    explained = [line.split()[0] for line in summary_text(wild).partition("\n\n")[0].splitlines()]
    assert set(explained) == set(heads) - {"endpoint", "delivered", "failed", "received", "unaccounted"}
    assert summary_text(wild).endswith("3 unaccounted for: this is a bug of webhookd, please report it; 7 still owed.")
