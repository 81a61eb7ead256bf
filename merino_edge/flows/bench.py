"""`bench`: any mix of models on one device or several: speed, memory, size, and perplexity of exported files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merino_edge.bundle import Bundle
from merino_edge.device.client import Device, TestSpec
from merino_edge.device.registry import LOCAL, device_folder
from merino_edge.errors import MeasurementError, MerinoEdgeError, PartialFailureError, UsageError
from merino_edge.files import write_lines
from merino_edge.flows.baseline import check_device, check_saving, guard, read_baseline, save
from merino_edge.flows.bench_quality import Text, perplexity_of, read_text
from merino_edge.flows.bench_rows import NO_QUALITY, bundle_row
from merino_edge.flows.bench_subjects import Contender, bundles_of, find_contenders
from merino_edge.flows.bench_tests import check_context, check_passes, default_tests, parse_tests
from merino_edge.flows.bench_torch import torch_rows
from merino_edge.flows.conditions import check_threads
from merino_edge.flows.deploy import subject_device
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.flows.measuring import MEASUREMENTS, shared_key, to_measurement, what_changed
from merino_edge.flows.placement import elsewhere
from merino_edge.flows.profile_file import read_profile
from merino_edge.flows.runtime_version import check_runtime, runtime_version
from merino_edge.flows.subject import Subject
from merino_edge.measurement import Measurement, append_measurements, read_measurements
from merino_edge.progress import SILENT, Progress

Row = dict[str, Any]
CONTEXT = 1024  # that the default tests of a model of others count on


@dataclass(frozen=True)
class BenchOptions:
    """What the command line says.

    Attributes:
        devices: `--device`, one or several.
        recipes: `FORMAT/RECIPE` or `RECIPE`; those exported where none is named, else fp32 and int8.
        tests: See `bench_tests.py`; those of a profile where none is named.
        warmup: Passes before each test, not counted; None leaves it to the timing code.
        repeats: Passes of each test, whatever they take; None for as many as there is time.
        seconds: Time for each bundle's speed.
        tokens: Held-out tokens for perplexity; 0 leaves it out.
        text: A text that all are scored on instead of each one's held-out tokens.
        threads: Of the runtime; None for all performance cores.
        sustained: Measure the hot state that lasts.
        baseline: An earlier document; worse than it by more than `fail_over` is a regression.
        fail_over: A share.
        save: Where the document is written, if all went well.
    """

    devices: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    warmup: int | None = None
    repeats: int | None = None
    seconds: float = 10.0
    tokens: int = 4096
    text: str | None = None
    threads: int | None = None
    sustained: bool = False
    baseline: str | None = None
    fail_over: float = 0.05
    save: str | None = None

    def specs(self, context_length: int) -> tuple[TestSpec, ...]:
        """Return the tests that were asked for, those of a profile for such a context otherwise.

        Raises:
            UsageError: one is no test, or there are more passes than samples are kept.
        """
        tests = parse_tests(self.tests) if self.tests else default_tests(context_length)
        check_passes(tests, self.repeats)
        return tuple(replace(spec, warmup=self.warmup, repeats=self.repeats) for spec in tests)


def bench(
    subjects: str | Sequence[str] | None, options: BenchOptions, ask: Ask | None = None, progress: Progress = SILENT
) -> dict[str, Any]:
    """Measure models on devices.

    Args:
        subjects: Runs, presets, bundles, ...: see `bench_subjects.py`; None for the latest run.
        options: See there.
        ask: Puts questions to a person.
        progress: Hears what is done.

    Returns:
        The document of `merino-edge bench --json`.

    Raises:
        PartialFailureError: some models or devices failed; the rows of the others are in its details.
        RegressionError: something is worse than the baseline allows; all rows are in its details.
    """
    names = [subjects] if isinstance(subjects, str) else list(subjects or ())
    options.specs(CONTEXT)  # a mistake in them is told before anything is looked for
    text = read_text(options.text, options.tokens) if options.text is not None else None
    before = read_baseline(Path(options.baseline)) if options.baseline is not None else None
    check_saving(options.save)
    with ExitStack() as stack:
        contenders = find_contenders(names, stack, progress)
        session = Session(contenders, options, text, ask, progress, before)
        document = session.document()
        if before is not None:
            document = guard(document, before, options.fail_over, session.again)
    save(options.save, document, progress)
    return document


@dataclass
class Session:
    """One call of `bench`.

    Attributes:
        contenders: What is measured.
        options: See there.
        text: What all are scored on; None for each one's own.
        ask: Puts questions to a person.
        progress: Hears what is done.
        before: Rows of the baseline.
        failures: What went wrong so far, and with what.
    """

    contenders: Sequence[Contender]
    options: BenchOptions
    text: Text | None
    ask: Ask | None
    progress: Progress
    before: Sequence[Row] | None = None
    failures: list[tuple[str, MerinoEdgeError]] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Measure everything; see `bench`."""
        devices = self._devices()
        rows = self._measure(devices, lambda row: True)
        run = self.contenders[0].subject.run if len(self.contenders) == 1 and self.contenders[0].subject else None
        document = {
            "device": devices[0],
            "devices": list(devices),
            "run": run.name if run else None,
            "trained": bool(rows) and all(row["trained"] for row in rows),
            "rows": rows,
        }
        self._raise_failures(document)
        return document

    def again(self, wanted: Sequence[Row]) -> list[Row]:
        """Measure some rows once more, in fresh processes, without perplexity; what fails is left out."""
        names = {_identity(row) for row in wanted}
        session = replace(self, options=replace(self.options, tokens=0), failures=[])
        devices = list(dict.fromkeys(str(row["device"]) for row in wanted))
        return session._measure(devices, lambda row: _identity(row) in names)

    def _devices(self) -> list[str]:
        if self.options.devices:
            names = list(dict.fromkeys(self.options.devices))
            for name in names:
                find_entry(name)  # an unknown name is a mistake of the call: nothing is begun
            if len(names) == 1:
                select_device(names[0], None, self.progress)
            return names
        ours = next((c.subject for c in self.contenders if c.subject is not None), None)
        if ours is None:
            self.progress.note(f"device: {LOCAL} (torch runs on this machine)")
            return [LOCAL]
        return [select_device(None, subject_device(ours), self.progress)]

    def _measure(self, devices: Sequence[str], wanted: Callable[[Row], bool]) -> list[Row]:
        """Return the rows of everything that is wanted, device after device; what fails is kept in `failures`."""
        rows: list[Row] = []
        ours = [c for c in self.contenders if c.subject is not None]
        for name in devices if ours else ():
            try:
                with opened(find_entry(name), self.ask) as device:
                    device.sustained, device.on_note = self.options.sustained, self.progress.note
                    rows += OnDevice(self, name, device, device.facts()).rows(ours, wanted)
            except MerinoEdgeError as error:
                self.failures.append((name, error))
        for contender in self.contenders:
            identity = {"device": LOCAL, "model": contender.name, "format": "torch", "recipe": "fp32", "form": "eager"}
            if contender.hub is None or not wanted(identity):
                continue
            try:
                rows += self._torch(contender, contender.hub)
            except MerinoEdgeError as error:
                self.failures.append((contender.name, error))
        return rows

    def _torch(self, contender: Contender, hub: str) -> list[Row]:
        options = self.options
        if options.sustained:
            raise UsageError(f"{contender.name} runs in torch on this machine: --sustained is for boards")
        text = self.text if options.tokens else None
        with self.progress.task(f"measuring {contender.name} in torch on this machine's processor", 1.0):
            tests = options.specs(CONTEXT)
            return torch_rows(hub, contender.name, tests, options.threads, options.seconds, text)

    def _raise_failures(self, document: dict[str, Any]) -> None:
        rows = document["rows"]
        kinds = {type(error) for _, error in self.failures}
        if self.failures and not rows and len(self.failures) == 1:
            raise self.failures[0][1]
        if self.failures and not rows and len(kinds) == 1:
            told = dict.fromkeys(error.message for _, error in self.failures)
            raise kinds.pop()("; ".join(told), hint=self.failures[0][1].hint)
        if self.failures:
            text = "; ".join(
                error.message if what in error.message else f"{what}: {error.message}" for what, error in self.failures
            )
            hint = "the other rows are complete" if rows else self.failures[0][1].hint
            raise PartialFailureError(text, hint=hint, partial=document)
        if not any(row["valid"] for row in rows):
            raise MeasurementError(
                f"no measurement on {', '.join(document['devices'])} is valid: {rows[-1]['invalid_reason']}",
                hint="stop what else runs on the device, let it cool, and measure again; without a fan: --sustained",
                partial=document,
            )


def _identity(row: Row) -> tuple[Any, ...]:
    """Return what tells a model's file on a device from all others of one call."""
    return tuple(row[name] for name in ("device", "model", "format", "recipe", "form"))


@dataclass
class OnDevice:
    """The part of a session that one device does.

    Attributes:
        session: The whole.
        name: The device's.
        device: Open.
        facts: What it says of itself.
    """

    session: Session
    name: str
    device: Device
    facts: dict[str, Any]

    def rows(self, contenders: Sequence[Contender], wanted: Callable[[Row], bool]) -> list[Row]:
        """Return the rows of every bundle of every model of ours."""
        progress, name = self.session.progress, self.name
        if self.facts.get("emulated"):
            progress.note(
                f"{name} is emulated ({self.facts['emulated']}): it computes rightly, its times are no board's"
            )
        if self.session.before is not None:
            check_device(self.session.before, self.facts)
        version = runtime_version(self.facts)
        found: list[tuple[Contender, Bundle]] = []
        for contender in contenders:
            try:
                assert contender.subject is not None
                bundles = bundles_of(contender.subject, self.session.options.recipes, version, progress)
                found += [(contender, bundle) for bundle in bundles if wanted(self._names(contender, bundle))]
            except MerinoEdgeError as error:
                self.session.failures.append((contender.name, error))
        rows: list[Row] = []
        if not found:
            return rows
        with progress.task(f"measuring {len(found)} bundle{'s' * (len(found) > 1)} on {name}", len(found)) as task:
            for number, (contender, bundle) in enumerate(found):
                task.update(number, f"measuring {contender.name} {bundle.label} on {name}")
                try:
                    check_runtime(bundle, version, name)
                    rows += self._bundle(contender, bundle)
                except MerinoEdgeError as error:
                    self.session.failures.append((f"{contender.name} {bundle.label} on {name}", error))
                task.update(number + 1)
        for contender in contenders:
            subject = contender.subject
            if subject is not None and subject.run is not None and subject.run.info()["device"] == name:
                _keep_records(subject, name)  # what another device showed says nothing of the run's promise
        return rows

    def _names(self, contender: Contender, bundle: Bundle) -> Row:
        manifest = bundle.manifest
        named = {"format": manifest.format, "recipe": manifest.recipe, "form": manifest.form}
        return {"device": self.name, "model": contender.name, **named}

    def _bundle(self, contender: Contender, bundle: Bundle) -> list[Row]:
        options, manifest = self.session.options, bundle.manifest
        tests = options.specs(manifest.context_length)
        check_context(tests, manifest.context_length, contender.name)
        check_threads(self.name, self.facts, options.threads)
        context = manifest.context_length
        results = self.device.measure(bundle, tests, options.threads, context, options.seconds, None)
        records = [to_measurement(result, bundle, self.facts, context) for result in results]
        append_measurements(device_folder(self.name) / MEASUREMENTS, records)
        _tell_placement(self.name, records, self.session.progress)
        _tell_changes(self.name, bundle, records[0], self.session.progress)
        assert contender.subject is not None
        quality = NO_QUALITY | perplexity_of(self.device, contender.subject, bundle, options.tokens, self.session.text)
        return [bundle_row(self.name, contender.name, bundle, result, self.facts, quality) for result in results]


def _tell_placement(name: str, records: Sequence[Measurement], progress: Progress) -> None:
    """Say where a virtual machine stood elsewhere than what its profile and its searches counted."""
    key = shared_key(records[0])
    reason = elsewhere(
        records, (r for r in read_measurements(device_folder(name) / MEASUREMENTS) if shared_key(r) == key)
    )
    if reason:
        progress.note(f"{reason}: no time below is what {name} usually takes, measure again later")


def _tell_changes(name: str, bundle: Bundle, record: Measurement, progress: Progress) -> None:
    """Say where the device is no longer what it was profiled as: what `search` predicts for it is out of date."""
    made = read_profile(name)
    fields = ("format", "recipe", "form")
    meant = {name: getattr(bundle.manifest, name) for name in fields}
    for recipe in made.recipes.values() if made else ():
        if {name: recipe.key.get(name) for name in fields} != meant:
            continue
        changed = what_changed({**recipe.key, "threads": record.key.threads}, shared_key(record))
        if changed:
            progress.note(f"{name} is not what it was profiled as: {changed}; next: merino-edge profile {name}")


def _keep_records(subject: Subject, name: str) -> None:
    run = subject.require_run()
    old = {json.dumps(r.to_json(), sort_keys=True): r for r in read_measurements(run.measurements_file)}
    for record in read_measurements(device_folder(name) / MEASUREMENTS):
        if record.key.architecture_digest == subject.architecture.digest:
            old[json.dumps(record.to_json(), sort_keys=True)] = record
    write_lines(run.measurements_file, [r.to_json() for r in old.values()])
