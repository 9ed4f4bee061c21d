import { useEffect } from "preact/hooks";
import { moment } from "../../format";
import { useTitle } from "../../parts/title";
import { isReading, load, problem, system, watch } from "../../state/system";
import { texts } from "../../texts";
import { DeadLetters } from "./dead-letters";
import { DiskRoom } from "./disk";
import { findings } from "./findings";
import { Waiting } from "./waiting";
import { Webhooks } from "./webhooks";
import { Workers } from "./workers";

const words = texts.system;

export function System() {
  useTitle(words.title);
  useEffect(watch, []);
  const found = system.value;
  return (
    <section class="system">
      <div class="head">
        <h1>{words.title}</h1>
        <div class="tools">
          {found && <span class="hint">{words.readAt(moment(found.at.toISOString()))}</span>}
          <button aria-disabled={isReading.value} onClick={() => void load()}>{words.refresh}</button>
        </div>
      </div>
      <p class="problem" role="alert">{problem.value ? problem.value.message : ""}</p>
      {found && (
        <>
          <Findings found={findings(found)} isOld={problem.value !== null} />
          <Workers busy={found.busy} free={found.free} />
          <Waiting queues={found.queues} />
          <DeadLetters letters={found.deadLetters} />
          <Webhooks webhooks={found.webhooks} />
          <DiskRoom disk={found.disk} />
        </>
      )}
    </section>
  );
}

/** @param isOld what could not be read again may need somebody. */
function Findings({ found, isOld }: { found: readonly string[]; isOld: boolean }) {
  if (!found.length && isOld) return null;
  return (
    <div class={found.length ? "card findings some" : "card findings"} role="status">
      {found.length ? (
        <ul>{found.map((text) => <li key={text}>{text}</li>)}</ul>
      ) : (
        <p>{words.findings.none}</p>
      )}
    </div>
  );
}
