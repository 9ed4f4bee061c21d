import { fieldsOf } from "../../api/parameters";
import { form, mistakes } from "../../state/new-job";
import { texts } from "../../texts";
import { Field } from "./field";
import { type Texts, imagePath, placeOf } from "../../state/new-job/request";

const words = texts.newJob;

const change = (images: readonly Texts[]): void => {
  form.value = { ...form.value, images };
};

/** What is drawn with the finished model: prompts, each with its settings. */
export function Images() {
  const { images } = form.value;
  // Most people draw all in one way.
  const add = () => {
    change([...images, { ...images.at(-1), prompt: "" }]);
    // It is there once the page is drawn anew.
    window.setTimeout(() => document.getElementById(`prompt-${images.length}`)?.focus());
  };
  return (
    <section aria-labelledby="images">
      <h3 id="images">{words.images}</h3>
      <p class="hint">{words.imagesHint}</p>
      {images.map((image, index) => (
        <Entry
          key={index} image={image} index={index}
          set={(changed) => change(images.map((each, place) => (place === index ? changed : each)))}
          remove={() => change(images.filter((_, place) => place !== index))}
        />
      ))}
      <button type="button" onClick={add}>{words.addImage}</button>
    </section>
  );
}

interface EntryProps {
  image: Texts;
  index: number;
  set: (image: Texts) => void;
  remove: () => void;
}

function Entry({ image, index, set, remove }: EntryProps) {
  const path = imagePath(placeOf(form.value, index));
  const mistake = image.prompt ? mistakes.value[`${path}.prompt`] : undefined;
  const id = `prompt-${index}`;
  return (
    <div class="entry">
      <div class="parameter wide">
        <div class="head">
          <label for={id}>{words.prompt(index + 1)}</label>
          <button type="button" class="quiet small" aria-label={words.removeImage(index + 1)} onClick={remove}>{words.remove}</button>
        </div>
        <textarea dir="auto"
          id={id} rows={2} value={image.prompt ?? ""} placeholder={words.promptExample} aria-invalid={mistake !== undefined}
          onInput={(event) => set({ ...image, prompt: event.currentTarget.value })}
        />
        <p class="problem-text" role="alert">{mistake ?? ""}</p>
      </div>
      <details>
        <summary>{words.imageSettings}</summary>
        <div class="parameters">
          {fieldsOf("inference").map((field) => (
            <Field
              key={field.name} field={field} path={`input.entry[${index}].${field.name}`} text={image[field.name] ?? ""}
              mistake={image.prompt ? mistakes.value[`${path}.${field.name}`] : undefined}
              set={(text) => set({ ...image, [field.name]: text })}
            />
          ))}
        </div>
      </details>
    </div>
  );
}
