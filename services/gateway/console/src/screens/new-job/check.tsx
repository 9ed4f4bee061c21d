import type { Report } from "../../api/types";
import { isLive } from "../../api/types";
import { count } from "../../format";
import { Facts } from "../../parts/facts";
import { LeftOut } from "../../parts/left-out";
import { Bar } from "../../parts/status";
import { go } from "../../hash";
import { check, isReading, pictures, problem, report, warnings } from "../../state/new-job/check";
import { checkAgain, isAsking, isEstimateOld } from "../../state/new-job";
import { texts } from "../../texts";
import { captionsOf, estimateOf } from "./estimate";
import { Pictures } from "./pictures";

const words = texts.newJob;

export function CheckPart() {
  return (
    <section class="card" aria-labelledby="report" aria-busy={isLive(check.value?.status ?? "COMPLETED")}>
      <h2 id="report">{words.report}</h2>
      <State />
      {report.value && <Found report={report.value} />}
    </section>
  );
}

/** Where the check stands, while there is no report; read aloud as it changes. */
function State() {
  const { value: job } = check;
  const isChecking = job !== undefined && isLive(job.status);
  const hasFailed = job !== undefined && !isChecking && job.status !== "COMPLETED";
  return (
    <div role="status">
      {problem.value && <p class="problem-text">{problem.value.message}</p>}
      {!job && !problem.value && <p class="hint">{isReading.value ? texts.picture.reading : words.noReport}</p>}
      {isChecking && (
        <div class="now">
          <p>
            {words.checking}
            {job.queue && job.queue.position > 1 && ` · ${texts.jobs.position(job.queue.position)}`}
          </p>
          <Bar label={words.checking} share={undefined} />
        </div>
      )}
      {hasFailed && (
        <>
          <strong>{words.checkFailed}</strong>
          <p class="problem-text">{job.error ?? texts.status[job.status]}</p>
        </>
      )}
    </div>
  );
}

function Found({ report: found }: { report: Report }) {
  const again = async () => {
    const id = await checkAgain();
    if (id !== null) go(`/new?check=${id}`, { replace: true });
  };
  const lines = estimateOf(found);
  const skipped = found.skipped ?? [];
  const previews = new Map(pictures.value.flatMap(({ file, preview }) => (preview ? [[file, preview] as const] : [])));
  return (
    <>
      <div aria-live="polite">
        <Facts facts={lines.map(({ name, value }) => [name, value])} />
      </div>
      <p class="hint">{captionsOf(found)}</p>
      {lines.map((line) => line.note && <p key={line.name} class="hint">{`${line.name} (${line.note})`}</p>)}
      {isEstimateOld.value && (
        <div class="old">
          <p>
            {words.oldEstimate} <span class="hint">{words.estimateAgainHint}</span>
          </p>
          <button disabled={isAsking.value} onClick={() => void again()}>{words.estimateAgain}</button>
        </div>
      )}
      {warnings.value.length > 0 && (
        <details open={warnings.value.length <= 5}>
          <summary>{words.warnings(warnings.value.length)}</summary>
          <ul class="plain-list">{warnings.value.map((line) => <li key={line}>{line}</li>)}</ul>
        </details>
      )}
      {skipped.length > 0 && (
        <details>
          <summary>{words.notUsed(found.skipped_count ?? skipped.length)}</summary>
          <LeftOut files={skipped} previews={previews} />
          {(found.skipped_count ?? 0) > skipped.length && <p class="hint">{words.listedOnly(count(skipped.length))}</p>}
        </details>
      )}
      <Pictures />
    </>
  );
}
