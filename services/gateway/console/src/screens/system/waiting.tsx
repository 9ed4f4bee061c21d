import { Fragment } from "preact";
import type { Queues } from "../../api/types";
import { count, duration } from "../../format";
import { Table } from "../../parts/table";
import { texts } from "../../texts";

const words = texts.system.queues;

export function Waiting({ queues }: { queues: Queues }) {
  const age = (seconds: number | null) => (seconds === null ? words.noAge : duration(seconds));
  const known = (number: number | null) => (number === null ? texts.system.unknown : count(number));
  return (
    <section class="card">
      <h2>{words.title}</h2>
      <div class="queues">
        <div>
          <h3>{words.lines}</h3>
          <Table
            label={words.lines} columns={words.lineColumns} rows={queues.lines} kind="numeric"
            keyOf={(line) => line.line}
            cells={(line) => [texts.kind[line.line], count(line.waiting), age(line.oldest_seconds)]}
          />
          <h3>{words.stages}</h3>
          <Table
            label={words.stages} columns={words.stageColumns} rows={queues.stages} kind="numeric"
            keyOf={(stage) => stage.stage}
            cells={(stage) => [
              texts.stage[stage.stage], count(stage.claimed), count(stage.waiting), count(stage.delayed),
              age(stage.oldest_seconds),
            ]}
          />
        </div>
        <div>
          <h3>{words.broker}</h3>
          <Table
            label={words.broker} columns={words.brokerColumns} rows={queues.broker} kind="numeric"
            keyOf={(queue) => queue.queue}
            cells={(queue) => [<QueueName name={queue.queue} />, known(queue.messages), known(queue.consumers)]}
          />
        </div>
      </div>
    </section>
  );
}

/** It may be broken after a dot. */
function QueueName({ name }: { name: string }) {
  const [service, ...rest] = name.split(".");
  return <code>{service}{rest.map((part) => <Fragment key={part}>.<wbr />{part}</Fragment>)}</code>;
}
