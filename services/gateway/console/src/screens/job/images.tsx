import { type Image, smallOf } from "../../api/types";
import { Thumbnail } from "../../parts/thumbnail";
import { texts } from "../../texts";

export function Images({ images }: { images: readonly Image[] }) {
  if (!images.length) return null;
  return (
    <section class="card">
      <h2>{texts.job.results}</h2>
      <ul class="images">
        {images.map((image, index) => (
          <li key={`${image.seed} ${index}`}>
            {image.image ? (
              <a href={image.image}>
                <Thumbnail link={smallOf(image)!} alt={image.prompt} width={image.width} height={image.height} />
              </a>
            ) : (
              <p class="problem-text">{image.error}</p>
            )}
            <p class="clamp" dir="auto" title={image.prompt}>{image.prompt}</p>
            <p class="hint">
              {image.width}×{image.height} · {image.scheduler} · {texts.viewer.seed} {image.seed}
            </p>
          </li>
        ))}
      </ul>
    </section>
  );
}
