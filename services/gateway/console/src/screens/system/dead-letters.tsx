import type { DeadLetter } from "../../api/types";
import { bytes, moment } from "../../format";
import { ask } from "../../parts/dialog";
import { attempt, tell } from "../../parts/notices";
import { type Paged, deleteLetter, moreDeadLetters, requeueLetter } from "../../state/system";
import { texts } from "../../texts";
import { excerptOf } from "./findings";

const words = texts.system.deadLetters;

export function DeadLetters({ letters }: { letters: Paged<DeadLetter> }) {
  return (
    <section class="card">
      <h2>{words.title}</h2>
      {letters.items.length === 0 ? (
        <p class="none">{words.none}</p>
      ) : (
        <>
          <p class="hint">{words.lead}</p>
          <ul class="entries">
            {letters.items.map((letter) => <Letter key={letter.id} letter={letter} />)}
          </ul>
        </>
      )}
      {letters.next && <button class="more" onClick={() => void attempt(moreDeadLetters)}>{texts.jobs.more}</button>}
    </section>
  );
}

function Letter({ letter }: { letter: DeadLetter }) {
  const name = words.name(letter.type ?? words.unreadable, letter.queue);
  const settle = async (question: string, yes: string, how: (id: string) => Promise<void>, done: string) => {
    if ((await ask(question, yes)) && (await attempt(() => how(letter.id)))) tell(done);
  };
  return (
    <li>
      <div class="what">
        <p class="name">{name}</p>
        <p class="problem-text">{letter.reason}</p>
        <p class="hint">
          {[moment(letter.at), bytes(letter.length), excerptOf(letter.excerpt)].filter(Boolean).join(" · ")}
        </p>
        {letter.job && <p class="id">{words.job(letter.job)}</p>}
        {letter.requeue && <p class="hint">{words.cannot(letter.requeue)}</p>}
      </div>
      <div class="actions">
        {!letter.requeue && (
          <button
            aria-label={words.requeueName(name)}
            onClick={() => void settle(words.confirmRequeue(letter.queue), words.requeue, requeueLetter, words.requeued)}
          >
            {words.requeue}
          </button>
        )}
        <button
          class="danger" aria-label={words.deleteName(name)}
          onClick={() => void settle(words.confirmDelete, words.delete, deleteLetter, words.deleted)}
        >
          {words.delete}
        </button>
      </div>
    </li>
  );
}
