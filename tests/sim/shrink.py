"""Cutting a plan that breaks an invariant down to what it takes.

Acts and traps go first, in ever smaller groups, then entries, settings, bookies, and the digits of
times. What is left is a scenario: `python -m tests.sim --shrink SEED [--mutants M03]`.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from tests.sim.cluster import Settings
from tests.sim.metadata_node import Troubles
from tests.sim.network import Conditions
from tests.sim.plan import Act, Plan, Trap, parse
from tests.sim.world import MS

Fails = Callable[[Plan], bool]


def shrink(plan: Plan, fails: Fails) -> Plan:
    """The smallest plan found for which `fails` still holds. It must hold for `plan`."""
    plan = _copy(plan)
    assert fails(plan), "this plan does not fail"
    size = None
    while size != plan.text():
        size = plan.text()
        plan = _fewer_steps(plan, fails)
        for simpler in (_fewer_entries, _plainer_settings, _fewer_bookies, _rounder_times):
            plan = _greedy(plan, fails, simpler)
    return plan


def _copy(plan: Plan) -> Plan:
    copy = parse(plan.text())
    copy.profile = plan.profile
    return copy


def _greedy(plan: Plan, fails: Fails, variants: Callable[[Plan], Iterator[Plan]]) -> Plan:
    """Take every variant that still fails, until none is left."""
    found = True
    while found:
        found = False
        for variant in variants(plan):
            if fails(variant):
                plan, found = variant, True
                break
    return plan


def _fewer_steps(plan: Plan, fails: Fails) -> Plan:
    """Delta debugging over acts and traps together."""
    steps: list[Act | Trap] = [*plan.acts, *plan.traps]
    size = max(1, len(steps) // 2)
    while steps:
        start = 0
        while start < len(steps):
            rest = steps[:start] + steps[start + size :]
            if fails(variant := _with_steps(plan, rest)):
                steps, plan = rest, variant
            else:
                start += size
        if size == 1:
            break
        size //= 2
    return plan


def _with_steps(plan: Plan, steps: list[Act | Trap]) -> Plan:
    variant = _copy(plan)
    variant.acts = [step for step in steps if isinstance(step, Act)]
    variant.traps = [step for step in steps if isinstance(step, Trap)]
    return variant


def _with_act(plan: Plan, number: int, act: Act) -> Plan:
    variant = _copy(plan)
    variant.acts[number] = act
    return variant


def _fewer_entries(plan: Plan) -> Iterator[Plan]:
    for number, act in enumerate(plan.acts):
        if act.verb == "add" and act.words not in ((), ("1",)):
            for count in (1, int(act.words[0]) - 1):
                yield _with_act(plan, number, replace(act, words=(str(count),)))


def _plainer_settings(plan: Plan) -> Iterator[Plan]:
    variant = _copy(plan)
    if (variant.settings.conditions, variant.settings.troubles) != (Conditions(), Troubles()):
        variant.settings.conditions, variant.settings.troubles = Conditions(), Troubles()
        yield variant
    for whose in ("conditions", "troubles", ""):
        default: object = {"conditions": Conditions(), "troubles": Troubles(), "": Settings()}[whose]
        part = getattr(plan.settings, whose) if whose else plan.settings
        for field in fields(part):
            usual = getattr(default, field.name)
            if isinstance(usual, bool | int | float) and getattr(part, field.name) != usual:
                variant = _copy(plan)
                target = getattr(variant.settings, whose) if whose else variant.settings
                setattr(target, field.name, usual)
                yield variant


def _fewer_bookies(plan: Plan) -> Iterator[Plan]:
    """An idle bookie has to do with placement only."""
    if plan.shape.bookies > plan.shape.ensemble_size:
        variant = _copy(plan)
        variant.shape = replace(plan.shape, bookies=plan.shape.bookies - 1)
        names = {f"b{number}" for number in range(variant.shape.bookies, plan.shape.bookies)}
        if not any(names & {*step.words, getattr(step, "who", "")} for step in (*plan.acts, *plan.traps)):
            yield variant


def _rounder_times(plan: Plan) -> Iterator[Plan]:
    for number, act in enumerate(plan.acts):
        for unit in (5 * MS, MS):
            rounded = act.at_us // unit * unit
            if act.at_us % unit:
                yield _with_act(plan, number, replace(act, at_us=rounded))
                break
