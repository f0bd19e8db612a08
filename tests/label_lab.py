"""One label table in every accepted form: image a without a pneumothorax, image b with the mask "5 3"."""

FORMS = (
    "ImageId, EncodedPixels\na,-1\nb, 5 3\n",
    "ImageId,EncodedPixels\na, -1\nb,5 3\n",
    "\ufeffImageId,EncodedPixels\na,-1\nb,5 3\n",
    "\ufeffa,-1\nb, 5 3\n",
    "a,-1\nb,5 3\n",
    "b,5 3\na,-1\n",
    "ImageId,EncodedPixels\r\na,\r\nb,5 3\r\n",
    "image_id,encoded_pixels\na,-1\n\n   \nb,5 3\n",
    "fold,ImageId,EncodedPixels,source\n0,a,-1,x\n1,b,5 3,y\n",
    "EncodedPixels,ImageId\n-1,a\n5 3,b\n",
    'ImageId,EncodedPixels\n"a","-1"\n"b","5 3"\n',
    "ImageId,EncodedPixels\na.dcm,-1\nb.png,5 3\n",
    "ImageId,EncodedPixels\na,-1\nb,5 3",
    "ImageId,EncodedPixels,\na,-1,\nb,5 3,\n",
)
