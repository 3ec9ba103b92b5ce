// KaTeX renders what Arithmatex has marked on pages, and the dollars of notebooks.
document$.subscribe(() => {
  document.querySelectorAll(".arithmatex").forEach((element) => renderMathInElement(element));
  document.querySelectorAll(".jp-RenderedMarkdown").forEach((element) =>
    renderMathInElement(element, {
      delimiters: [
        { left: "$$", right: "$$", display: true },
        { left: "$", right: "$", display: false },
      ],
    }),
  );
});
