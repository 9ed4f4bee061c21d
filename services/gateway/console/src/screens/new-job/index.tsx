import { useEffect } from "preact/hooks";
import { ask } from "../../parts/dialog";
import { attempt, tell } from "../../parts/notices";
import { useTitle } from "../../parts/title";
import { useSearch } from "wouter-preact";
import { go } from "../../hash";
import { check, report } from "../../state/new-job/check";
import { fillFrom, form, goOn, isEstimateOld, isSubmitting, mistakes, refused, startOver, submit } from "../../state/new-job";
import { transfer } from "../../state/new-job/upload";
import { texts } from "../../texts";
import { CheckPart } from "./check";
import { Data } from "./data";
import { Equivalents } from "./commands";
import { shortly } from "./estimate";
import { EMPTY } from "../../state/new-job/request";
import { Settings } from "./settings";

const words = texts.newJob;

export function NewJob() {
  useTitle(words.title);
  const query = new URLSearchParams(useSearch());
  const [from, checked] = [query.get("from"), query.get("check")];
  useEffect(() => {
    if (checked) goOn(checked);
    else if (from) void attempt(async () => {
      const id = await fillFrom(from);
      go(id === null ? "/new" : `/new?check=${id}`, { replace: true }); // a reload must not undo what is changed from here on
      tell(words.filledFrom);
    });
  }, [from, checked]);
  const isUntouched = !check.value && !transfer.value && form.value === EMPTY;

  const again = async () => {
    if (!(await ask(words.confirmStartOver, words.startOver))) return;
    startOver();
    go("/new", { replace: true });
  };
  return (
    <div class="new-job">
      <div class="head">
        <div>
          <h1>{words.title}</h1>
          <p class="lead">{words.lead}</p>
        </div>
        {!isUntouched && <button onClick={() => void again()}>{words.startOver}</button>}
      </div>
      <Data />
      <CheckPart />
      <Settings />
      <Equivalents />
      <Submit />
    </div>
  );
}

function Submit() {
  const wrong = Object.keys(mistakes.value).length;
  const { others } = refused.value;
  const isReady = report.value !== undefined;
  const foretold = !report.value ? words.submitHint : isEstimateOld.value ? words.before(shortly(report.value)) : shortly(report.value);
  const start = async () => {
    if (wrong > 0) return showFirstMistake();
    const id = await submit();
    if (id !== null) go(`/jobs/${id}`);
    else showFirstMistake();
  };
  return (
    <div class="submit card">
      <div role="alert" class="problem-text">
        {others.length > 0 && (
          <>
            <strong>{words.refused}</strong>
            <ul>{others.map((each) => <li key={each}>{each}</li>)}</ul>
          </>
        )}
        {wrong > 0 && <p>{words.submitMistakes(wrong)}</p>}
      </div>
      <div class="actions">
        <span class="hint" id="submit-hint">{foretold}</span>
        <button class="main" disabled={!isReady || isSubmitting.value} onClick={() => void start()} aria-describedby="submit-hint">
          {words.submit}
        </button>
      </div>
    </div>
  );
}

/** Goes to it, whatever it is folded into. */
function showFirstMistake(): void {
  window.setTimeout(() => {
    const input = document.querySelector<HTMLElement>(".new-job [aria-invalid='true']");
    for (let box = input?.closest("details"); box; box = box.parentElement?.closest("details")) box.open = true;
    input?.focus();
  });
}
