import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { useSearch } from "wouter-preact";
import type { JobStatus } from "../../api/types";
import { More } from "../../parts/more";
import { attempt, tell } from "../../parts/notices";
import { useTitle } from "../../parts/title";
import { imagesOf, modelOf, pictureJobs, readStatus, withoutDeleted } from "../../state/pictures";
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
  useTitle(words.title);
  const page = useRef<HTMLElement>(null);
  const models = useModels();
  const taking = useTaking(settings);
  const drawn = useMemo(() => pictureJobs({ kind: ["draw"], status: [] }), [signIns.value]);
  useEffect(() => void drawn.more(), [drawn]);
  useEffect(() => withoutDeleted(drawn), [drawn]);

  const use = (job: JobStatus, index?: number) => {
    const image = index === undefined ? undefined : imagesOf(job)[index];
    settings.value = image ? settingsOfImage(image, job.input, index!) : settingsOf(entriesOf(job.input)[0] ?? {});
    model.value = modelOf(job);
    taking.found.value = null;
    tell(words.filled);
    page.current?.querySelector<HTMLElement>("#draw-prompt")?.focus();
  };
  const search = useSearch();
  useEffect(() => void attempt(() => fillFrom(new URLSearchParams(search))), [search]);
  const fillFrom = async (asked: URLSearchParams) => {
    model.value = asked.get("model") ?? model.value;
    const [from, image] = [asked.get("from"), asked.get("image")];
    if (from) use(await readStatus(from), image === null ? undefined : Number(image));
  };

  const onSent = async (id: string) => {
    tell(words.sent);
    await attempt(async () => {
      const job = await readStatus(id);
      drawn.items.value = [{ kind: "draw", createdAt: new Date().toISOString(), job }, ...drawn.items.value];
    });
  };
  const ended = (id: string, job: JobStatus | undefined) => {
    drawn.items.value = drawn.items.value.flatMap((each) => (each.job.id !== id ? each : job ? { ...each, job } : []));
    if (job) tell(words.ended(texts.status[job.status]));
  };
  useEffect(() => {
    const drop = (event: DragEvent) => void taking.take(event.dataTransfer?.files[0]);
    addEventListener("drop", drop); // anywhere on the page
    return () => removeEventListener("drop", drop);
  }, []);

  const { items: jobs, isEmpty } = drawn;
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
        {isEmpty.value && <p class="empty">{words.empty}</p>}
        <History jobs={jobs.value} ended={ended} use={use} />
        <More list={drawn} />
      </div>
    </section>
  );
}
