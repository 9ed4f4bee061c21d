import type { DatasetPicture, GivenEdit } from "../../api/types";
import { count } from "../../format";
import { attempt, tell } from "../../parts/notices";
import { edit, hasSaveFailed, loadPage, pages, pictures, save, unsaved } from "../../state/new-job/check";
import { Thumbnail } from "../../parts/thumbnail";
import { texts } from "../../texts";

const words = texts.newJob;

export function Pictures() {
  const { shown, all } = pages.value;
  return (
    <section aria-labelledby="pictures">
      <div class="head">
        <h3 id="pictures">{words.pictures}</h3>
        <Saving />
      </div>
      <ul class="dataset" tabIndex={0} aria-labelledby="pictures">
        {pictures.value.map((picture) => (
          <Picture key={picture.number} picture={picture} change={unsaved.value.get(picture.number)} />
        ))}
        {shown < all && <More />}
      </ul>
    </section>
  );
}

function Saving() {
  if (hasSaveFailed.value) {
    return (
      <span class="tools" role="alert">
        <span class="problem-text">{words.notSaved}</span>
        <button onClick={() => void attempt(save)}>{texts.error.again}</button>
      </span>
    );
  }
  return <span class="hint" role="status">{unsaved.value.size > 0 ? words.saving : ""}</span>;
}

function More() {
  const { shown, all } = pages.value;
  return (
    <li class="more-pictures">
      <span class="hint">{words.shown(count(pictures.value.length), count(shown), count(all))}</span>
      <button onClick={() => void attempt(loadPage)}>{words.more}</button>
    </li>
  );
}

const LONGEST_CAPTION = 8192;

function Picture({ picture, change }: { picture: DatasetPicture; change: GivenEdit | undefined }) {
  const { number, file, preview, source, bucket, remarks } = picture;
  const isUsed = change?.use ?? picture.use;
  const caption = change?.caption ?? picture.caption;
  const send = (changes: Omit<GivenEdit, "number">) =>
    edit({ number, ...changes }, (error) => tell(error.message, { isProblem: true }));
  return (
    <li class={isUsed ? "one" : "one unused"}>
      {preview ? (
        <Thumbnail class="preview" link={preview} width={112} height={112} />
      ) : (
        <span class="preview none hint">{words.noPreview}</span>
      )}
      <div class="about">
        <div class="head">
          <span class="name clamp" title={file} dir="auto">{file}</span>
          <label class="check">
            <input
              type="checkbox" role="switch" checked={isUsed} aria-label={words.useFile(file)}
              onChange={(event) => send({ use: event.currentTarget.checked })}
            />
            <span aria-hidden="true">{words.use}</span>
          </label>
        </div>
        <textarea dir="auto"
          rows={2} aria-label={words.caption(file)} maxLength={LONGEST_CAPTION} value={caption} disabled={!isUsed}
          onInput={(event) => send({ caption: event.currentTarget.value })}
        />
        <p class="hint">
          {[source === "edit" || change?.caption != null ? words.source.edit : (words.source[source] ?? source), bucket].join(" · ")}
          {source === "edit" && (
            <button class="quiet small" aria-label={words.restoreFile(file)} onClick={() => send({ caption: null })}>{words.restore}</button>
          )}
        </p>
        {remarks.length > 0 && <ul class="remarks">{remarks.map((remark) => <li key={remark}>{remark}</li>)}</ul>}
      </div>
    </li>
  );
}
