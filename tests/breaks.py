"""Break the code on purpose, and see a named test go red: ``make breaks``.

Each break is one replacement in a copy of the project. A break whose text is no longer
there is an error, and so is a test that stays green, or that is red without the break.
"""

# ruff: noqa: T201  # its output is for people

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
# What was made here is no part of the project.
MADE = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]


AFTER_THE_HANDLER = """\
            except Exception as error:
                if self.keyed.is_failure(error):
                    raise
"""
LOCK_THEN_LOOK = """\
            self._send(cursor, f"{self.opening}; {claims.claim_sql(new_record.pk)}")
        except Error as error:
            failure = without_values(error)
        finally:
            if not self.is_nested:
                # As usual in Django's transactions; the public setter refuses by now.
                driver._autocommit = False
        if failure is not None:
            raise failure
        *_others, lock, row = cursor.first_rows
"""
LOOK_THEN_LOCK = LOCK_THEN_LOOK.replace("lock, row", "row, lock").replace(
    "claims.claim_sql(new_record.pk)",
    "'; '.join(reversed(claims.claim_sql(new_record.pk).split('; ')))",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """One replacement in ``file``, and the test that must notice."""

    name: str
    file: str
    old: str
    new: str
    test: str
    suite: str = "sqlite"


BREAKS = (
    Break(
        name="store outside the transaction",
        file="idempotency/modes/atomic.py",
        old="            self.transaction.complete(ran.record, stored)\n",
        new="            transaction.on_commit("
        "lambda: self.claims.complete(ran.record, stored), using=self.alias)\n",
        test="tests/long/test_crash_matrix.py::test_cut_at_every_boundary",
    ),
    Break(
        name="run the handler on a read-only server",
        file="idempotency/claims/pipelines.py",
        old='if record is None and read_only == "on":',
        new='if record is None and read_only == "never":',
        test="tests/test_unavailable_databases.py::TestReadOnly::test_new_key",
        suite="postgresql",
    ),
    Break(
        name="leave the COMMIT of a lease to the session's settings",
        file="idempotency/claims/postgresql.py",
        old="return (self.DURABLY.format(end) if lease else end), values",
        new="return end, values",
        test="tests/test_unavailable_databases.py::TestDurability::test_leased",
        suite="postgresql",
    ),
    Break(
        name="note a COMMIT after functions that may raise",
        file="idempotency/modes/atomic.py",
        old="functions.insert(0, functions.pop())",
        new="functions.append(functions.pop())",
        test="tests/test_unavailable_databases.py::TestCommit::test_on_commit",
    ),
    Break(
        name="refuse what another node has answered meanwhile",
        file="idempotency/execution.py",
        old="            outcome = self._replay_winner()\n",
        new="            outcome = None\n",
        test="tests/test_unavailable_databases.py::TestCommit::test_lost_to_another",
    ),
    Break(
        name="no token in complete",
        file="idempotency/claims/base.py",
        old="SET {completed}, {lease} = NULL {by_claim}",
        new="SET {completed}, {lease} = NULL {by_id} AND %s IS NOT NULL",
        test="tests/test_claims.py::TestClaim::test_another_token",
    ),
    Break(
        name="erase without a new token",
        file="idempotency/models.py",
        old='        "lease_expires_at": None,\n        "token": uuid4(),\n    }\n',
        new='        "lease_expires_at": None,\n    }\n',
        test="tests/test_erasing.py::test_late_handlers",
    ),
    Break(
        name="erase what is being executed",
        file="idempotency/models.py",
        old="erase_in_batches(records.without_live_lease(), erased_values())",
        new="erase_in_batches(records, erased_values())",
        test="tests/test_erasing.py::test_in_progress",
    ),
    Break(
        name="claim without the advisory lock",
        file="idempotency/claims/postgresql.py",
        old='"pg_try_advisory_xact_lock("\n'
        "        \"hashint8extended(%s, '{table}'::regclass::oid::bigint))\"",
        new="\"(hashint8extended(%s, '{table}'::regclass::oid::bigint) IS NOT NULL)\"",
        test="tests/test_concurrency.py::test_held_elsewhere",
        suite="postgresql",
    ),
    Break(
        name="look-up before the lock",
        file="idempotency/claims/pipelines.py",
        old=LOCK_THEN_LOOK,
        new=LOOK_THEN_LOCK,
        test="tests/test_pipelines.py::TestFailures::test_lock_before_look_up",
        suite="postgresql",
    ),
    Break(
        name="a record in another transaction than the claim's",
        file="idempotency/claims/postgresql.py",
        old="CASE WHEN TRANSACTION_TIMESTAMP() = %s THEN",
        new="CASE WHEN %s IS NOT NULL THEN",
        test="tests/test_pipelines.py::TestFailures::test_transaction_ended",
        suite="postgresql",
    ),
    Break(
        name="a COMMIT on MariaDB that does not ask for the record",
        file="idempotency/claims/multi_statements.py",
        old='"SET autocommit = (ROW_COUNT() = 1)"',
        new='"SET autocommit = 1"',
        test="tests/test_multi_statements.py::TestFailures::test_claim_lost",
        suite="mariadb",
    ),
    Break(
        name="the hooks of a view mistaken for the default ones",
        file="idempotency/keyed_request.py",
        old="self.view.owner if isinstance(self.view, PlainView) else self.view",
        new='getattr(self.view, "owner", self.view)',
        test="tests/test_dispatch.py::test_attributes_of_its_own",
    ),
    Break(
        name="look-up on a replica",
        file="idempotency/models.py",
        old="router.db_for_write(IdempotencyRecord)",
        new="router.db_for_read(IdempotencyRecord)",
        test="tests/test_databases.py::test_replicas_are_never_asked",
    ),
    Break(
        name="purge without SKIP LOCKED",
        file="idempotency/purging.py",
        old="select_for_update(skip_locked=skip_locked)",
        new="select_for_update()",
        test="tests/test_purge.py::test_held_rows",
        suite="postgresql",
    ),
    Break(
        name="purge without SKIP LOCKED on MariaDB",
        file="idempotency/purging.py",
        old="select_for_update(skip_locked=skip_locked)",
        new="select_for_update()",
        test="tests/test_purge.py::test_held_rows",
        suite="mariadb",
    ),
    Break(
        name="an answer that can't be rendered taken for a refusal",
        file="idempotency/modes/atomic.py",
        old="                response = self.handler()\n" + AFTER_THE_HANDLER,
        new="                response = self.finalizer.finish(self.handler())\n"
        + AFTER_THE_HANDLER,
        test="tests/test_execution.py::TestOutcomes::test_rendering_refuses",
    ),
    Break(
        name="undo by a mark on somebody else's transaction",
        file="idempotency/claims/transactions.py",
        old="transaction.atomic(using=claims.connection.alias)",
        new="transaction.atomic(using=claims.connection.alias, savepoint=False)",
        test="tests/test_third_party_code.py::TestTracking::test_failure",
    ),
    Break(
        name="a success made of a failure",
        file="idempotency/execution.py",
        old="                self.finalizer.refuse_success()\n",
        new="                pass\n",
        test="tests/test_third_party_code.py::TestMadeAnswers::test_of_the_view",
    ),
    Break(
        name="take-over of an answer that came late",
        file="idempotency/claims/base.py",
        old='f"AND {state} = %s AND ({lease} IS NULL',
        new="f\"AND %s <> '' AND ({lease} IS NULL",
        test="tests/test_lease_machine.py::test_any_order",
    ),
    Break(
        name="take-over of a live lease",
        file="idempotency/claims/base.py",
        old="({lease} IS NULL OR {lease} <= {now})",
        new="({lease} IS NULL OR {lease} > '' OR {lease} <= {now})",
        test="tests/test_lease_machine.py::test_any_order",
    ),
    Break(
        name="no token in renew",
        file="idempotency/claims/base.py",
        old="SET {lease} = {LEASE} {executing}",
        new="SET {lease} = {LEASE} {by_id} AND %s IS NOT NULL",
        test="tests/test_stalled_workers.py::TestStalledWorkers::test_renewing",
    ),
    Break(
        name="a step recorded apart from its writes",
        file="idempotency/modes/steps.py",
        old="with self.transaction():",
        new="with self.connection.wrap_database_errors:",
        test="tests/test_crash.py::test_killed_between_steps",
    ),
    Break(
        name="a held call without its mark",
        file="idempotency/modes/steps.py",
        old='elif on_abandoned == "hold":',
        new="elif on_abandoned is None:",
        test="tests/test_stalled_workers.py::TestStalledSteps::test_not_called_late",
    ),
    Break(
        name="a refusal after derive() frees the key",
        file="idempotency/modes/leased.py",
        old="context.has_side_effects and not context.is_released",
        new="context.attempt is None",
        test="tests/test_leased.py::TestErrors::test_charged_and_refused",
    ),
    Break(
        name="another reading of bodies under the old fingerprint version",
        file="idempotency/fingerprints/v1.py",
        old='    return "bytes", hashlib.sha256(content).digest()\n',
        new='    return "bytes", hashlib.sha256(content.strip()).digest()\n',
        test="tests/test_golden_fingerprints.py::test_golden",
    ),
    Break(
        name="leases by the application's clock",
        file="idempotency/claims/base.py",
        old="return self._compile(UTCNow() + duration)",
        new="from django.utils import timezone\n"
        "        end = timezone.now() + duration\n"
        "        record = IdempotencyRecord(lease_expires_at=end)\n"
        '        return "%s", self._values(record, ["lease_expires_at"])',
        test="tests/test_leased.py::TestClocks::test_application_clocks",
        suite="postgresql",
    ),
    Break(
        name="a ciphertext that fits another field",
        file="idempotency/encryption.py",
        old="    return head + record_id.bytes + field.encode()\n",
        new="    return head + record_id.bytes\n",
        test="tests/test_encryption.py::test_swapped_fields",
    ),
    Break(
        name="a fingerprint that is the same in each record",
        file="idempotency/encryption.py",
        old="    message = record_id.bytes + digest.encode()\n",
        new="    message = digest.encode()\n",
        test="tests/test_encryption.py::test_fingerprint",
    ),
    Break(
        name="a run that can't read its record",
        file="idempotency/execution.py",
        old="            log_unreadable(record, record.unreadable)\n"
        "            raise OutcomeUnknown\n",
        new="            log_unreadable(record, record.unreadable)\n",
        test="tests/test_encryption.py::test_lost_key_of_an_abandoned_record",
    ),
    Break(
        name="headers in the clear",
        file="idempotency/encrypted_fields.py",
        old='ENCRYPTED = frozenset({"headers", "body", "steps"})\n',
        new='ENCRYPTED = frozenset({"body", "steps"})\n',
        test="tests/test_encryption_dump.py::test_dump",
    ),
)


def run_test(root: Path, broken: Break) -> int:
    """Run the break's test in that copy, and return pytest's exit status."""
    command = [sys.executable, "-m", "tests.run_suites", "--suite", broken.suite]
    command += ["--", "-q", "-x", "-p", "no:cacheprovider", broken.test]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    with (root / "output.txt").open("wb") as output:
        return subprocess.run(
            command, cwd=root, env=env, check=False, stdout=output, stderr=output
        ).returncode


def replace(root: Path, broken: Break) -> None:
    """Put the break in; it must fit exactly once."""
    path = root / broken.file
    text = path.read_text()
    if text.count(broken.old) != 1:
        raise ValueError(f"{broken.name}: {broken.file} no longer has {broken.old!r}")
    path.write_text(text.replace(broken.old, broken.new))


def main() -> int:
    """Try every break; 1 if a test did not notice."""
    wanted = sys.argv[1:]
    unnoticed = 0
    for broken in BREAKS:
        if wanted and not any(word in broken.name for word in wanted):
            continue
        with TemporaryDirectory(prefix="idempotency-breaks-") as folder:
            root = Path(folder) / ROOT.name
            shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(".git", *MADE))
            whole = run_test(root, broken)
            replace(root, broken)
            status = run_test(root, broken)
            told = (root / "output.txt").read_text(errors="replace")
        failed = [line for line in told.splitlines() if line.startswith("FAILED")]
        noticed = whole == 0 and status == 1 and bool(failed)
        unnoticed += not noticed
        verdict = "red" if noticed else f"NOT NOTICED ({whole}, {status})"
        print(f"{broken.name} | {broken.suite} | {broken.test} | {verdict}", flush=True)
        print(f"    {failed[0][:160]}" if failed else told[-2000:], flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
