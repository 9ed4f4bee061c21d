import { useRef, useState } from "preact/hooks";
import { bytes, count, duration, percent } from "../../format";
import { attempt } from "../../parts/notices";
import { Bar } from "../../parts/status";
import { go } from "../../hash";
import { check, isReading } from "../../state/new-job/check";
import { dataProblem, dataUrl, forgetData, isAsking, leftOut, take, takeUrl } from "../../state/new-job";
import { type Transfer, cancelUpload, transfer } from "../../state/new-job/upload";
import { texts } from "../../texts";
import { ofDrop, ofList } from "./dropped";
import { type Chosen, PICTURES } from "../../state/new-job/packing";

const words = texts.newJob;

export function Data() {
  const { value: current } = transfer;
  return (
    <section class="card" aria-labelledby="data">
      <div class="head">
        <h2 id="data">{words.data}</h2>
        {check.value && !current && <button onClick={other}>{words.otherData}</button>}
      </div>
      {current ? <Progress transfer={current} /> : !check.value && !isReading.value && <Choice />}
      <Problem />
      <LeftOut />
    </section>
  );
}

/** The check is in the address, so that loading the page again does not lose it. */
function shown(id: string | null): void {
  if (id !== null && location.hash.startsWith("#/new")) go(`/new?check=${id}`, { replace: true });
}

function other(): void {
  forgetData();
  go("/new", { replace: true });
}

function Choice() {
  const [isOver, setOver] = useState(false);
  const use = (files: Promise<Chosen<File>[]> | Chosen<File>[]) => attempt(async () => shown(await take(await files)));
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    if (event.dataTransfer) void use(ofDrop(event.dataTransfer));
  };
  return (
    <>
      <div
        class={isOver ? "drop-zone over" : "drop-zone"} onDrop={drop}
        onDragOver={(event) => {
          event.preventDefault();
          setOver(true);
        }}
        onDragLeave={() => setOver(false)}
      >
        <strong>{words.drop}</strong>
        <p class="hint">{words.dropHint}</p>
        <div class="actions">
          <Chooser name={words.chooseFolder} isFolder use={use} />
          <Chooser name={words.choosePictures} accept={[...PICTURES, "txt", "caption", "yaml", "yml"].map((each) => `.${each}`).join()} use={use} />
          <Chooser name={words.chooseZip} accept=".zip,application/zip" use={use} />
        </div>
      </div>
      <form
        class="url"
        onSubmit={(event) => {
          event.preventDefault();
          void takeUrl(dataUrl.value).then(shown);
        }}
      >
        <label for="data-url">{words.orUrl}</label>
        <div class="line">
          <input
            id="data-url" type="url" required placeholder={words.urlExample} value={dataUrl.value}
            onInput={(event) => (dataUrl.value = event.currentTarget.value)}
          />
          <button disabled={isAsking.value}>{words.check}</button>
        </div>
      </form>
    </>
  );
}

interface ChooserProps {
  name: string;
  accept?: string;
  isFolder?: boolean;
  use: (files: Chosen<File>[]) => unknown;
}

/** A button in place of the browser's own. */
function Chooser({ name, accept, isFolder = false, use }: ChooserProps) {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <button type="button" onClick={() => input.current?.click()}>{name}</button>
      <input
        ref={input} type="file" hidden aria-label={name} {...(accept && { accept })} multiple={!isFolder && !accept?.includes("zip")}
        {...(isFolder && { webkitdirectory: true })}
        onChange={(event) => {
          const files = ofList(event.currentTarget.files ?? []);
          event.currentTarget.value = "";
          if (files.length) use(files);
        }}
      />
    </>
  );
}

function Progress({ transfer: { name, sent, total, rate, isWaiting } }: { transfer: Transfer }) {
  const share = total ? sent / total : 0;
  return (
    <div class="upload">
      <div class="head">
        <strong>{words.uploading(name)}</strong>
        <button class="danger" onClick={cancelUpload}>{words.cancel}</button>
      </div>
      <Bar label={words.uploading(name)} share={share} />
      <p class="hidden" role="status">{percent(Math.floor(10 * share) / 10)}</p>
      <p class="hint">
        {[
          percent(Math.floor(100 * share) / 100),
          words.sent(bytes(sent), bytes(total)),
          rate && words.perSecond(bytes(rate)),
          rate && texts.jobs.left(duration((total - sent) / rate)),
        ].filter(Boolean).join(" · ")}
      </p>
      <p role="status" class="warn">{isWaiting ? words.waiting : ""}</p>
    </div>
  );
}

function Problem() {
  const { value: problem } = dataProblem;
  if (!problem) return <div role="alert" />;
  const { budget, mistakes, message } = problem;
  const amount = budget?.name.endsWith("_bytes") ? bytes : count;
  const lines = mistakes.length
    ? mistakes.map((mistake) => mistake.replace(/^input\.train\.data_url: /, ""))
    : [budget ? words.budget(budget.name, amount(budget.used), amount(budget.allowed)) : message];
  return (
    <div role="alert" class="problem-text">
      {lines.map((line) => <p key={line}>{line}</p>)}
    </div>
  );
}

const MOST_LISTED = 200;

function LeftOut() {
  const { value: files } = leftOut;
  if (!files.length) return null;
  return (
    <details>
      <summary>{words.notUploaded(files.length)}</summary>
      <ul class="plain-list">
        {files.slice(0, MOST_LISTED).map((each) => (
          <li key={each.path}>
            <code dir="auto">{each.path}</code>: {words.reason[each.reason]}
          </li>
        ))}
      </ul>
      {files.length > MOST_LISTED && <p class="hint">{words.listedOnly(count(MOST_LISTED))}</p>}
    </details>
  );
}
