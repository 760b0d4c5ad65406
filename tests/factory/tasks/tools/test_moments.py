"""Dates, times and numbers as people say them, against what a calendar says."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest

from factory.tasks.tools import moments
from factory.tasks.tools.values import find_spans
from tests.factory.tasks.tools.worlds import TODAY


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("March 8th", "2019-03-08"), ("the 14th of March, 2020", "2020-03-14"), ("8 April", "2019-04-08"),
        ("the 9th", "2019-03-09"), ("10th of this month", "2019-03-10"), ("later today", "2019-03-01"),
        ("day after tomorrow", "2019-03-03"), ("next Monday", "2019-03-04"), ("this Saturday", "2019-03-02"),
        ("Friday next week", "2019-03-08"), ("2019-02-29", None), ("2020-02-29", "2020-02-29"), ("the 9th street", None),
        ("February 30th", None), ("March 2 pm", None),
    ],
)  # fmt: skip
def test_dates(text: str, expected: str | None) -> None:
    assert moments.read(text, "date", TODAY) == expected


def test_every_weekday_is_the_next_of_its_name() -> None:
    for offset in range(7):
        today = TODAY + dt.timedelta(offset)
        for day in ("Monday", "Sunday", "Friday"):
            found = dt.date.fromisoformat(moments.read(day, "date", today) or "")
            assert f"{found:%A}" == day and 1 <= (found - today).days <= 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4:30 in the evening", "16:30"), ("half past 11 in the morning", "11:30"), ("quarter to 5 in the evening", "16:45"),
        ("evening 5:45", "17:45"), ("8 am", "08:00"), ("12 pm", "12:00"), ("12:15 a.m.", "00:15"), ("16:30", "16:30"),
        ("noon", "12:00"), ("eleven thirty am", "11:30"), ("25:10", None),
        ('12 o"clock in the afternoon', "12:00"), ("half past 3 o’clock in the afternoon", "15:30"), ("5 oclock", "05:00"),
    ],
)  # fmt: skip
def test_times(text: str, expected: str | None) -> None:
    assert moments.read(text, "time", TODAY) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$1,330", "1330"), ("one thousand three hundred and thirty dollars", "1330"), ("4.3", "4.3"), ("twenty two", "22"),
        ("4.30", "4.3"), ("room 12b", None), ("eight years back", "2011"), ("one year ago", "2018"), ("last year", "2018"),
        ("in '16", "2016"), ("of '98", "1998"), ("the '80s", None),
        ("twenty five years ago", "1994"), ("1,000 years ago", "1000"), ("ſeven years ago", "2012"),
    ],
)  # fmt: skip
def test_numbers(text: str, expected: str | None) -> None:
    assert moments.read(text, "number", TODAY) == expected


def test_without_a_day_only_whole_dates_are_read() -> None:
    assert moments.read("next Monday", "date", None) is None
    assert moments.read("November 25, 2013", "date", None) == "2013-11-25"


def test_spans_are_names_quotes_codes_and_moments_and_never_overlap() -> None:
    text = (
        'Please mail "Blue Horizon" to j.smith@example.org and Alfred Hitchcock at Dulles International Airport on March 8th at '
        "9 am. Then ring Old Tom 4 times."
    )
    spans = find_spans(text, TODAY)
    said = [(text[s.start : s.end], s.kind) for s in spans]
    assert said == [
        ("Blue Horizon", "text"), ("j.smith@example.org", "text"), ("Alfred Hitchcock", "text"),
        ("Dulles International Airport", "text"), ("March 8th", "date"), ("9 am", "time"),
        ("Old Tom", "text"), ("4", "number"),
    ]  # fmt: skip
    assert all(a.end <= b.start for a, b in itertools.pairwise(spans))


def test_sentences_do_not_begin_with_names_by_accident() -> None:
    assert find_spans("Sounds great to me, really. Thanks! Book it.", TODAY) == []
    assert [s.value for s in find_spans("Toronto, please", TODAY)] == [" toronto"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("attractions in Los angeles or san diego", ["Los angeles", "san diego"]),
        ("San Jose Sharks in New york", ["San Jose Sharks", "New york"]),
        ("we need New things and a long walk", ["New"]),
        ("a cab to 899 Sir Francis Drake Boulevard for 2", ["899 Sir Francis Drake Boulevard", "2"]),
        ("at 8339 church street. Then 1100 Foster Square Lane", ["8339 church street", "1100 Foster Square Lane"]),
        ("888 Golden Saratoga and 30th Street Station", ["888 Golden Saratoga", "30th Street Station"]),
        ("2 tickets on the way, 4 Giants seats", ["2", "4", "Giants"]),
        ("leaving on March 8 one way, a 3 star place", ["March 8", "one", "3"]),
        ("500 USD, then 120 Fahrenheit", ["500", "USD", "120", "Fahrenheit"]),
        ("songs from 2016 Adele made", ["2016", "Adele"]),
        ("400,Berlin and 12 Oak Street I think", ["400", "Berlin", "12 Oak Street"]),
        ("from LGB airport or Union bus station", ["LGB airport", "Union bus station"]),
        ("In Santa Rosa, I think. In San Leandro, I've", ["Santa Rosa", "San Leandro"]),
        ("a flat in Washington D.C. with J.K. Rowling", ["Washington D.C.", "J.K. Rowling"]),
        ("see Dr. Chika Akera, MD or St. Helena", ["Dr. Chika Akera, MD", "St. Helena"]),
        ("it is in Main St. Please call me", ["Main St"]),
        ("a ticket to Giants vs Rockies or to Phillies vs. Braves", ["Giants vs Rockies", "Phillies vs. Braves"]),
        ("a cab to The Van Buren, then play Let It Be", ["The Van Buren", "Let It Be"]),
        ("so I think. The Van Buren, and I'd say Yes", ["Van Buren"]),
        ("a table in Saratoga at the Basin, on the TV", ["Saratoga", "Basin", "TV"]),
        ("weather in Fairfield on the March 6th; ensure that, On March 10th we go", ["Fairfield", "March 6th", "March 10th"]),
        ("play Beat It by Michael Jackson in Tulsa, OK please", ["Beat It", "Michael Jackson", "Tulsa, OK"]),
        ("I live in Washington D.C. Please book. I moved to the U.S. The hotel is", ["Washington D.C.", "U.S."]),
        ("meet me on Ocean Dr. Please hurry", ["Ocean Dr"]),
        ("Dr. Smith at St. Mary's Hospital, a Park at Mt. Hood", ["Dr. Smith", "St. Mary's Hospital", "Park", "Mt. Hood"]),
        ("sounds good, Please Book it, Thanks, Bye. ok, What About Berlin In San Jose", ["Berlin In San Jose"]),
        ('at 12 o"clock at "Sino" from 3 o"clock', ['12 o"clock', "Sino", '3 o"clock']),
    ],
)
def test_places_and_addresses_are_one_span(text: str, expected: list[str]) -> None:
    assert [text[span.start : span.end] for span in find_spans(text, TODAY)] == expected
