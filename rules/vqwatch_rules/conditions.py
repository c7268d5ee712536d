"""What a rule can say about a metric, as rule files write it: ``{metric: loss, is: above, threshold: 3}``.

Only data and its validation. What a condition does with readings is in `judges`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from vqwatch_rules.durations import NOW, Span, parse_span

MAX_HISTORY: Final = 2000

SpanField = Annotated[Span, BeforeValidator(parse_span)]


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("nan is no threshold: nothing compares with it; use 'is: not_finite'")
    return value


def _plain_number(value: object) -> object:
    if isinstance(value, bool | str):
        raise ValueError(f"{value!r} is no number")
    return value


def _strings(value: object) -> object:
    if isinstance(value, list | tuple):
        return tuple(str(item) for item in value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return (str(value),)
    return value


Number = Annotated[float, BeforeValidator(_plain_number), AfterValidator(_number)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_strings), Field(min_length=1)]


class Strict(BaseModel):
    """A part of a rule file: unknown keys are mistakes, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False, allow_inf_nan=True)


class OnMetric(Strict):
    """A condition over one metric. ``where`` keeps the series whose labels match one of the shell patterns,
    and none of those that begin with ``!``.
    """

    thresholds: ClassVar[tuple[str, ...]] = ()
    """The keys that a severity may set for itself."""

    metric: str
    where: dict[str, Patterns] = Field(default_factory=dict)


class OnValue(OnMetric):
    """A condition that the newest value decides.

    ``over`` says of what: each series on its own, their mean, min or max, or ``fraction``: the rule holds once that
    share of the series holds. ``relative_to`` divides by another metric's reading with the same labels.
    """

    over: Literal["each", "mean", "min", "max", "fraction"] = "each"
    fraction: Annotated[Number, Field(gt=0, le=1)] | None = None
    relative_to: str | None = None

    @model_validator(mode="after")
    def _fraction_goes_with_over(self) -> Self:
        if (self.over == "fraction") != (self.fraction is not None):
            raise ValueError("'over: fraction' and 'fraction: <share>' go together")
        return self


class Above(OnValue):
    """Above ``threshold``; firing ends at or below ``clear`` (default: the threshold)."""

    thresholds = ("threshold", "clear")
    is_: Literal["above"] = Field(alias="is")
    threshold: Number | None = None
    clear: Number | None = None

    @model_validator(mode="after")
    def _clear_is_on_the_healthy_side(self) -> Self:
        if self.clear is not None and self.threshold is not None and self.clear > self.threshold:
            raise ValueError(f"clear ({self.clear:g}) has to be at or below the threshold ({self.threshold:g})")
        return self


class Below(OnValue):
    """Below ``threshold``; firing ends at or above ``clear`` (default: the threshold)."""

    thresholds = ("threshold", "clear")
    is_: Literal["below"] = Field(alias="is")
    threshold: Number | None = None
    clear: Number | None = None

    @model_validator(mode="after")
    def _clear_is_on_the_healthy_side(self) -> Self:
        if self.clear is not None and self.threshold is not None and self.clear < self.threshold:
            raise ValueError(f"clear ({self.clear:g}) has to be at or above the threshold ({self.threshold:g})")
        return self


class _Interval(OnValue):
    thresholds = ("low", "high")
    low: Number | None = None
    high: Number | None = None

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low ({self.low:g}) has to be at most high ({self.high:g})")
        return self


class Outside(_Interval):
    """Below ``low`` or above ``high``; on the bounds is inside."""

    is_: Literal["outside"] = Field(alias="is")


class Between(_Interval):
    """At least ``low`` and at most ``high``."""

    is_: Literal["between"] = Field(alias="is")


class Equals(OnValue):
    """Exactly ``value``."""

    thresholds = ("value",)
    is_: Literal["equals"] = Field(alias="is")
    value: Number | None = None


class NotFinite(OnMetric):
    """NaN or infinite."""

    is_: Literal["not_finite"] = Field(alias="is")


class _History(OnMetric):
    history: int = Field(default=100, ge=4, le=MAX_HISTORY)
    min_history: int = Field(default=30, ge=3, le=MAX_HISTORY)

    @model_validator(mode="after")
    def _minimum_fits(self) -> Self:
        if self.min_history > self.history:
            raise ValueError(f"min_history ({self.min_history}) has to be at most history ({self.history})")
        return self


class _Jump(_History):
    thresholds = ("deviations", "min_change", "min_relative_change")
    deviations: Positive = 8.0
    min_change: NotNegative = 0.0
    min_relative_change: NotNegative = 0.0


class Spike(_Jump):
    """Far above the series' own recent history.

    Above its median by more than ``deviations`` robust standard deviations (1.4826 MAD), by more than ``min_change``
    and by more than ``min_relative_change`` of the median's size. ``history`` and ``min_history`` count readings;
    a jump is not taken into the history until it has lasted for ``history`` readings and is the new normal.
    """

    is_: Literal["spike"] = Field(alias="is")


class Drop(_Jump):
    """As far below the series' own recent history as `Spike` is above it."""

    is_: Literal["drop"] = Field(alias="is")


class Slope(_History):
    """The least-squares trend over the last ``history`` readings, per step.

    With ``relative``, the change over the whole history as a share of its mean size instead. ``min_fit`` is the share
    of the variance (r squared) that the trend has to explain.
    """

    thresholds = ("above", "below", "min_fit")
    is_: Literal["slope"] = Field(alias="is")
    above: Number | None = None
    below: Number | None = None
    relative: bool = False
    min_fit: Annotated[Number, Field(ge=0, le=1)] = 0.0


class Increase(OnMetric):
    """A counter that grew by more than ``threshold`` within the last ``within``; a reset counts from 0."""

    thresholds = ("threshold",)
    is_: Literal["increase"] = Field(alias="is")
    threshold: NotNegative | None = None
    within: SpanField = Span(seconds=300.0)

    @model_validator(mode="after")
    def _looks_back(self) -> Self:
        if not self.within:
            raise ValueError("within has to be above 0")
        return self


class Stale(OnMetric):
    """No new reading for ``longer_than`` and for ``intervals`` times the series' own usual interval."""

    thresholds = ("longer_than", "intervals")
    is_: Literal["stale"] = Field(alias="is")
    longer_than: SpanField = NOW
    intervals: NotNegative = 0.0

    @model_validator(mode="after")
    def _is_time(self) -> Self:
        if self.longer_than.steps or not (self.longer_than or self.intervals):
            raise ValueError("stale needs 'longer_than' as time ('30s') or 'intervals', or both")
        return self


class Missing(OnMetric):
    """Not one reading since the run began, of a layer that the run announced (or at all, without a layer label)."""

    is_: Literal["missing"] = Field(alias="is")


def _kind(value: Any) -> str | None:
    found = value.get("is") if isinstance(value, dict) else getattr(value, "is_", None)
    return found if isinstance(found, str) else None


Simple: TypeAlias = Annotated[
    Annotated[Above, Tag("above")]
    | Annotated[Below, Tag("below")]
    | Annotated[Outside, Tag("outside")]
    | Annotated[Between, Tag("between")]
    | Annotated[Equals, Tag("equals")]
    | Annotated[NotFinite, Tag("not_finite")]
    | Annotated[Spike, Tag("spike")]
    | Annotated[Drop, Tag("drop")]
    | Annotated[Slope, Tag("slope")]
    | Annotated[Increase, Tag("increase")]
    | Annotated[Stale, Tag("stale")]
    | Annotated[Missing, Tag("missing")],
    Discriminator(_kind),
]


class All(Strict):
    """Every one of the conditions ``of`` holds, for the same labels.

    The alert has the labels of the first condition, less those that its ``where`` selects by; a later condition is
    joined by the labels that it shares with the first.
    """

    thresholds: ClassVar[tuple[str, ...]] = ()
    is_: Literal["all"] = Field(alias="is")
    of: tuple[Simple, ...] = Field(min_length=2, max_length=8)


Condition: TypeAlias = Annotated[
    Annotated[Above, Tag("above")]
    | Annotated[Below, Tag("below")]
    | Annotated[Outside, Tag("outside")]
    | Annotated[Between, Tag("between")]
    | Annotated[Equals, Tag("equals")]
    | Annotated[NotFinite, Tag("not_finite")]
    | Annotated[Spike, Tag("spike")]
    | Annotated[Drop, Tag("drop")]
    | Annotated[Slope, Tag("slope")]
    | Annotated[Increase, Tag("increase")]
    | Annotated[Stale, Tag("stale")]
    | Annotated[Missing, Tag("missing")]
    | Annotated[All, Tag("all")],
    Discriminator(_kind),
]

KINDS: Final[dict[str, type[OnMetric] | type[All]]] = {
    "above": Above,
    "below": Below,
    "outside": Outside,
    "between": Between,
    "equals": Equals,
    "not_finite": NotFinite,
    "spike": Spike,
    "drop": Drop,
    "slope": Slope,
    "increase": Increase,
    "stale": Stale,
    "missing": Missing,
    "all": All,
}
