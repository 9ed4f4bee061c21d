import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { useSearch } from "wouter-preact";
import type { Image, JobStatus } from "../../api/types";
import { attempt, tell } from "../../parts/notices";
import { imagesOf, modelOf, pictureJobs, readStatus } from "../../state/pictures";
import { may, signIns } from "../../state/session";
import { texts } from "../../texts";
import { Form } from "./form";
import { History } from "./history";
import { useModels } from "./models";
import { STANDARD, type Settings, entriesOf, settingsOf, settingsOfImage } from "./settings";
import { useTaking } from "./taking";

const words = texts.draw;

/** They stay while other screens are looked at. */
const settings = signal<Settings>(STANDARD);
const model = signal<string | null>(null);

export function Draw() {
  const page = useRef<HTMLElement>(null);
  const models = useModels();
  const taking = useTaking(settings);
  const drawn = useMemo(() => pictureJobs((summary) => summary.kind === "draw"), [signIns.value]);
  useEffect(() => void drawn.more(), [drawn]);

  const use = (job: JobStatus, image?: Image) => {
    settings.value = image ? settingsOfImage(image) : settingsOf(entriesOf(job.input)[0] ?? {});
    model.value = modelOf(job);
    taking.found.value = null;
    tell(words.filled);
    page.current?.querySelector<HTMLElement>("#draw-prompt")?.focus();
  };
  const search = useSearch();
  useEffect(() => void attempt(() => fillFrom(new URLSearchParams(search))), [search]);
  const fillFrom = async (asked: URLSearchParams) => {
    model.value = asked.get("model") ?? model.value;
    const from = asked.get("from");
    if (!from) return;
    const job = await readStatus(from);
    use(job, imagesOf(job)[Number(asked.get("image"))]);
  };

  const onSent = async (id: string) => {
    tell(words.sent);
    await attempt(async () => {
      const job = await readStatus(id);
      drawn.jobs.value = [{ id, kind: "draw", createdAt: new Date().toISOString(), job }, ...drawn.jobs.value];
    });
  };
  const changed = (job: JobStatus) => {
    drawn.jobs.value = drawn.jobs.value.map((each) => (each.id === job.id ? { ...each, job } : each));
    tell(words.ended(texts.status[job.status]));
  };
  useEffect(() => {
    // Anywhere: the browser would leave the page for a file that is dropped beside the form.
    const allow = (event: DragEvent) => event.preventDefault();
    const drop = (event: DragEvent) => {
      event.preventDefault();
      void taking.take(event.dataTransfer?.files[0]);
    };
    addEventListener("dragover", allow);
    addEventListener("drop", drop);
    return () => {
      removeEventListener("dragover", allow);
      removeEventListener("drop", drop);
    };
  }, []);

  const { jobs, isBusy, hasMore, problem, more } = drawn;
  return (
    <section ref={page} class="draw">
      <div class="draw-side">
        <h1>{words.title}</h1>
        {may("submit") ? (
          <Form settings={settings} model={model} models={models} taking={taking} onSent={onSent} />
        ) : (
          <p class="card">{words.mayNot}</p>
        )}
      </div>
      <div>
        <h2>{words.history}</h2>
        {!isBusy.value && !problem.value && jobs.value.length === 0 && <p class="empty">{words.empty}</p>}
        <History jobs={jobs.value} changed={changed} use={use} />
        <p class="problem" role="alert">{problem.value ? (problem.value as Error).message : ""}</p>
        {hasMore.value && (
          <button class="more" aria-disabled={isBusy.value} onClick={() => void more()}>
            {isBusy.value ? texts.picture.reading : problem.value ? texts.error.again : texts.jobs.more}
          </button>
        )}
      </div>
    </section>
  );
}
