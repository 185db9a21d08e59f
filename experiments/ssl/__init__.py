"""Self-supervised learning: every method, judged by one protocol.

What short runs on two CPU cores give on 10,000 + 2,000 pictures of CIFAR-10, seed 0:
accuracy on the test split in percent, of the neighbours' vote before and after training and
of a linear probe with ten labels per class. Pixels alone have 25.9 and 26.7.

                                         neighbours         linear
    method            encoder  epochs   before    after    after
    SimCLR            convnet    10     33.8     42.1     29.6
    InvaSpread        convnet     2     33.9     41.5     27.2
    supervised        convnet     2     30.7     37.1     33.7
    MoCo v2           convnet     3     33.8     36.9     25.2
    MAE               vit        10     31.5     36.2     25.4
    rotation          convnet     2     33.9     35.7     24.0
    colorization      own         2     30.1     35.1     24.2
    MoCo v3           vit         3     30.9     34.5     25.7
    SimSiam           convnet    10     33.8     33.1     24.5
    jigsaw            own         2     32.2     32.4     23.6
    inpainting        own         1     31.8     32.4     24.7
    SwAV              convnet     2     33.8     32.2     24.5
    BYOL              convnet     3     33.9     32.1     22.3
    BEiT              vit        10     29.0     31.9     23.4
    relative patch    convnet     2     33.9     31.6     23.9
    Deep InfoMax      own         2     24.5     31.6     21.7
    CMC               two         2     30.9     29.7     19.8
    DINO              vit         2     27.8     27.8     22.5
    CPC               own       0.5     28.5     27.0     24.1
    InstDisc          convnet     3     33.8     24.8     16.6

Likewise on Fashion-MNIST, whose pixels alone have 79.1 and 71.4:

                                         neighbours         linear
    method            encoder  epochs   before    after    after
    SimCLR            convnet     3     71.5     77.8     69.3
    BYOL              convnet     3     71.5     75.8     64.0
    MoCo v3           convnet     1     71.5     75.6     65.3
    SimSiam           convnet     3     71.5     74.4     60.7
    MAE               vit         1     62.9     73.0     55.9
    DINO              vit       0.5     71.9     72.5     59.3
    BEiT              vit         1     62.2     62.8     44.4

The commands, and what is to be said of each, stand in the headers. Epochs and encoders
differ: this is a table of what a quarter of an hour gives, not of what the methods are worth
(their papers train for 100 to 1000 epochs). `python -m experiments.compare runs/*` makes
such a table from runs of one's own.
"""
